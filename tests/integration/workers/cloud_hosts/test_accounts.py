"""Keys of another account do not show a machine that is still billed: nothing is concluded from its absence.

The keeper has the client of Lambda against two stand-ins for its API, which are two accounts.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from app.hosts.schemas import Settlement
from app.hosts.settlement import HostInReach, settle_host
from app.storage.database import transaction
from app.tables import Host, HostStatus, StopReason
from tests.clouds.faults import Fault
from tests.clouds.lambda_stand_in import LambdaStandIn
from tests.integration.workers.cloud_hosts.test_keeper import (
    Control,
    control,
    lambda_account,
    lambda_stand_in,
    make_ready,
    open_lambda,
)
from workers.cloud_hosts.context import SETTLE_SECONDS
from workers.cloud_hosts.keeper import CloudSweepFailed
from workers.clouds.accounts import LambdaAccount
from workers.clouds.lambda_cloud import LambdaCloud

__all__ = ["control", "lambda_account", "lambda_stand_in", "open_lambda"]

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
OpenLambda = Callable[[LambdaAccount], LambdaCloud]
OUT_OF_REACH = "was launched in the account .* may be billed, and nothing ends it"


@pytest.fixture
def other_stand_in() -> Iterator[LambdaStandIn]:
    """Start another account at Lambda."""
    with LambdaStandIn() as stand_in:
        yield stand_in


@pytest.fixture
def other(
    other_stand_in: LambdaStandIn, lambda_account: LambdaAccount, open_lambda: OpenLambda
) -> LambdaCloud:
    """Return a client with the keys of the other account."""
    return open_lambda(replace(lambda_account, url=other_stand_in.url))


def lose(control: Control, host_id: str, seconds: float = 400) -> None:
    """Sweep with keys that do not show the machine of a host."""
    with pytest.raises(CloudSweepFailed, match=OUT_OF_REACH):
        control.sweep(seconds)
    assert not control.host(host_id).status.finished


def test_a_host_of_another_account_never_ends_unseen_and_ends_with_the_keys_of_its_own(
    control: Control, lambda_stand_in: LambdaStandIn, other: LambdaCloud
) -> None:
    own = control.context.cloud
    host_id, _ = make_ready(control, lambda_stand_in)
    control.use(other)
    for _ in range(3):
        lose(control, host_id)
    lost = control.host(host_id)
    assert (lost.status, lost.stop_reason) == (HostStatus.terminating, StopReason.worker_lost)
    assert lost.problem is not None
    assert (lost.problem["code"], len(lambda_stand_in.billed())) == ("host_out_of_reach", 1)
    control.use(own)
    control.sweep()
    control.sweep()
    assert (control.host(host_id).status, lambda_stand_in.billed()) == (HostStatus.failed, [])
    assert control.host(host_id).problem is None


def test_a_launch_of_unknown_outcome_is_not_repeated_in_another_account(
    control: Control, lambda_stand_in: LambdaStandIn, other: LambdaCloud, other_stand_in: LambdaStandIn
) -> None:
    own = control.context.cloud
    lambda_stand_in.plan.add("POST /instance-operations/launch", Fault.lost_response)
    host_id = control.add_host()
    control.sweep()
    control.use(other)
    lose(control, host_id, 2 * SETTLE_SECONDS)
    control.use(own)
    control.sweep()
    assert other_stand_in.instances == {}
    assert [control.host(host_id).machine_id] == list(lambda_stand_in.instances)


def test_a_host_that_no_account_has_launched_is_launched_with_the_present_keys(
    control: Control, other: LambdaCloud, other_stand_in: LambdaStandIn
) -> None:
    control.use(other)
    host_id = control.add_host()
    control.sweep()
    assert [control.host(host_id).machine_id] == other_stand_in.billed()
    assert control.host(host_id).account == other_stand_in.keys[0]["id"]


def test_another_key_of_the_same_account_is_recognized_by_the_ssh_keys(
    control: Control, lambda_stand_in: LambdaStandIn, lambda_account: LambdaAccount, open_lambda: OpenLambda
) -> None:
    host_id, _ = make_ready(control, lambda_stand_in)
    lambda_account.ssh_key_path.with_name("new.pub").write_text("ssh-ed25519 AAAAAnother")
    path = lambda_account.ssh_key_path.with_name("new")
    control.use(open_lambda(replace(lambda_account, ssh_key_path=path)))
    lambda_stand_in.instances.clear()
    control.sweep(400)
    control.sweep()
    assert control.host(host_id).status is HostStatus.failed


def test_a_machine_that_is_listed_shows_that_the_account_is_the_same(
    control: Control, lambda_stand_in: LambdaStandIn, lambda_account: LambdaAccount, open_lambda: OpenLambda
) -> None:
    host_id, _ = make_ready(control, lambda_stand_in)
    # Somebody deletes the SSH key at Lambda, which then has another id.
    lambda_stand_in.keys.clear()
    control.use(open_lambda(lambda_account))
    control.sweep()
    assert control.host(host_id).account == lambda_stand_in.keys[0]["id"]
    lambda_stand_in.instances.clear()
    control.sweep(400)
    assert control.host(host_id).status is HostStatus.failed


@pytest.mark.parametrize("settlement", Settlement)
def test_a_person_settles_a_host_whose_account_is_unknown(
    control: Control, lambda_stand_in: LambdaStandIn, settlement: Settlement
) -> None:
    host_id, _ = make_ready(control, lambda_stand_in)
    with transaction() as session, pytest.raises(HostInReach):
        settle_host(session, host_id, settlement)
    with transaction() as session:
        session.get_one(Host, host_id).account = None  # As of a row from before the upgrade.
    lambda_stand_in.instances.clear()
    with pytest.raises(CloudSweepFailed, match="an account that is not recorded"):
        control.sweep(400)
    with transaction() as session:
        settle_host(session, host_id, settlement)
    control.sweep()
    host = control.host(host_id)
    assert (host.status.finished, host.problem, host.spend_usd > 0) == (True, None, True)


def test_an_account_that_the_cloud_does_not_state_ends_and_launches_nothing(
    control: Control, lambda_stand_in: LambdaStandIn, lambda_account: LambdaAccount, open_lambda: OpenLambda
) -> None:
    host_id, _ = make_ready(control, lambda_stand_in)
    waiting = control.add_host()
    lambda_stand_in.instances.clear()
    control.use(open_lambda(lambda_account))
    lambda_stand_in.plan.add("GET /ssh-keys", *[Fault.server_error] * 4)
    with pytest.raises(CloudSweepFailed, match="the account of the keys is unknown"):
        control.sweep(400)
    assert not control.host(host_id).status.finished
    assert (control.host(waiting).epoch, lambda_stand_in.instances) == (0, {})
