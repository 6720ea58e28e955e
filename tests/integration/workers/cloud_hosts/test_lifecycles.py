"""No path leaves a machine billed, whatever is lost between API, keeper, database and cloud.

Method: many lives of hosts on a simulated clock and cloud, with crashes at any commit or call. Each planted
mutant breaks one rule of the keeper; the simulation must notice it.
"""

from collections.abc import Callable
from typing import Any

import pytest

from app.hosts import lifecycle
from app.hosts.lifecycle import KeeperLease
from app.settings import Settings
from app.tables import CloudState, Host
from tests.integration.workers.cloud_hosts.simulated_cloud import FaultRates
from tests.integration.workers.cloud_hosts.simulation import MAX_STEPS, Report, Simulation
from workers.cloud_hosts import keeper, launch, orphans, reach, stop_rules, terminate
from workers.cloud_hosts.context import Sweep
from workers.clouds.protocol import CloudError, LaunchOrder

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
Plant = Callable[[pytest.MonkeyPatch], None]
# For mutants: their faults must be frequent to be found within few lives.
FREQUENT = FaultRates(crash=0.01, lost_request=0.15, lost_response=0.15, other_account=0.0, restoration=0.0)
# For those that concern accounts and restorations.
UNSETTLED = FaultRates(crash=0.0, lost_request=0.0, lost_response=0.0, other_account=0.03, restoration=0.02)


def live(
    settings: Settings, seed: int, n_hosts: int, rates: FaultRates, max_steps: int = MAX_STEPS
) -> Report:
    """Live through so many lives, and print what became of them."""
    settings.max_hosts = 1000
    report = Simulation(settings, seed, rates).run(n_hosts, max_steps)
    print(report)
    return report


@on_sqlite
def test_hosts_end_with_their_machines_in_any_order_of_faults(settings: Settings) -> None:
    live(settings, 1, 30, FaultRates()).check()


@on_sqlite
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(5))
def test_a_thousand_hosts_end_with_their_machines(settings: Settings, seed: int) -> None:
    live(settings, 100 + seed, 200, FaultRates(crash=0.004)).check()


@on_sqlite
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_hosts_end_with_their_machines_while_most_calls_fail(settings: Settings) -> None:
    rates = FaultRates(crash=0.005, lost_request=0.3, lost_response=0.3, rate_limited=0.2)
    report = live(settings, 7, 60, rates)
    # A termination that is refused for minutes costs what it costs.
    report.overspent.clear()
    report.check()


def without_the_list_before_a_second_launch(patch: pytest.MonkeyPatch) -> None:
    def may_launch(sweep: Sweep, host: Host) -> bool:
        return host.launch_at is None or host.launch_at <= sweep.now

    patch.setattr(launch, "may_launch", may_launch)


def with_the_row_after_the_launch(patch: pytest.MonkeyPatch) -> None:
    """Commit the request only after the machine was launched."""
    start = launch._start_attempt

    def launch_first(sweep: Sweep, host: Host) -> Any:
        order = LaunchOrder(
            installation=sweep.context.installation, host_id=host.id, epoch=host.epoch + 1,
            type=host.type, region=host.region, user_data="", spot=host.spot,
        )  # fmt: skip
        try:
            machine_id = sweep.context.cloud.launch(order)
        except CloudError:
            return None
        started = start(sweep, host)
        if started is not None:
            launch._record_machine(started[0], machine_id)
        return None

    patch.setattr(launch, "_start_attempt", launch_first)


def with_terminations_given_up(patch: pytest.MonkeyPatch) -> None:
    """Try to terminate a machine once."""
    once = terminate.terminate

    def give_up(sweep: Sweep, host: Host, machine: Any) -> None:
        if not host.terminate_failures:
            once(sweep, host, machine)

    patch.setattr(terminate, "terminate", give_up)


def without_the_search_for_orphans(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(orphans, "is_surplus", lambda machine, host: False)


def without_the_adoption_of_machines(patch: pytest.MonkeyPatch) -> None:
    """Launch again although the list contains the machine of the last request."""
    patch.setattr(keeper, "_find_unrecorded", lambda machines, host: None)


def without_the_spend_cap(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stop_rules, "_reaches_cap", lambda sweep, host: False)


def without_the_limit_of_a_boot(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stop_rules, "_check_boot", lambda sweep, host: None)


def with_an_end_before_the_cloud_confirms_it(patch: pytest.MonkeyPatch) -> None:
    """Write the end of a host although the request to terminate its machine was lost."""
    end = terminate.terminate

    def end_at_once(sweep: Sweep, host: Host, machine: Any) -> None:
        try:
            end(sweep, host, machine)
        finally:
            terminate._end(sweep, host)

    patch.setattr(terminate, "terminate", end_at_once)
    patch.setattr(orphans, "is_surplus", lambda machine, host: host is None)


def with_keys_that_outlive_their_host(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lifecycle, "_revoke_key", lambda session, host: None)


def without_the_accounts_of_hosts(patch: pytest.MonkeyPatch) -> None:
    """Call a host ended whose machine the keys do not show."""
    patch.setattr(reach, "find_barrier", lambda sweep, host, machine: None)


def without_the_hold_of_a_restored_cloud(patch: pytest.MonkeyPatch) -> None:
    read = keeper._read_state

    def read_unheld(lease: KeeperLease) -> CloudState:
        state = read(lease)
        state.held_at = None
        return state

    patch.setattr(keeper, "_read_state", read_unheld)


def with_machines_of_an_undone_state_as_orphans(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(orphans, "is_unseen", lambda sweep, machine, host: False)


# With the seed whose faults show it.
MUTANTS: list[tuple[Plant, int]] = [
    (without_the_list_before_a_second_launch, 2),
    (with_the_row_after_the_launch, 5),
    (with_terminations_given_up, 1),
    (without_the_search_for_orphans, 2),
    (without_the_adoption_of_machines, 2),
    (without_the_spend_cap, 3),
    (without_the_limit_of_a_boot, 4),
    (with_an_end_before_the_cloud_confirms_it, 1),
    (with_keys_that_outlive_their_host, 1),
]

UNSETTLED_MUTANTS: list[tuple[Plant, int]] = [
    (without_the_accounts_of_hosts, 1),
    (without_the_hold_of_a_restored_cloud, 1),
    (with_machines_of_an_undone_state_as_orphans, 3),
]


@on_sqlite
@pytest.mark.slow
@pytest.mark.parametrize(("plant", "seed"), UNSETTLED_MUTANTS)
def test_a_planted_mutant_of_accounts_or_restorations_is_caught(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, plant: Plant, seed: int
) -> None:
    plant(monkeypatch)
    report = live(settings, seed, 12, UNSETTLED, max_steps=400)
    assert report.unasked_acts or report.lost_machines


@on_sqlite
@pytest.mark.parametrize(("plant", "seed"), MUTANTS)
def test_a_planted_mutant_is_caught(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, plant: Plant, seed: int
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        live(settings, seed, 9, FREQUENT, max_steps=900).check()
