"""What must not hide a billed machine: calls without effect, slow ones, other shapes, other regions.

The keeper has the client of a real cloud, against a stand-in for its API, on a simulated clock.
"""

from datetime import timedelta
from typing import Any

import pytest
from sqlmodel import select

from app.settings import Settings
from app.storage.database import read_session, transaction
from app.tables import CloudState, Host, HostStatus, StopReason, Worker
from tests.clouds.lambda_stand_in import LambdaStandIn
from tests.integration.workers.cloud_hosts.test_keeper import (
    Control,
    control,
    lambda_account,
    lambda_stand_in,
    make_ready,
    open_lambda,
)
from workers.cloud_hosts.context import LEASE_SECONDS
from workers.cloud_hosts.keeper import CloudSweepFailed
from workers.clouds.protocol import Machine

__all__ = ["control", "lambda_account", "lambda_stand_in", "open_lambda"]

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def end(control: Control, host_id: str) -> None:
    """Decide the end of a host now."""
    with transaction() as session:
        host = session.get_one(Host, host_id)
        host.status, host.stop_at, host.stop_reason = (
            HostStatus.terminating, control.clock.now, StopReason.requested
        )  # fmt: skip


def read_state() -> CloudState:
    with read_session() as session:
        return session.scalars(select(CloudState)).one()


def test_a_termination_that_is_accepted_without_effect_becomes_overdue(
    control: Control,
    lambda_stand_in: LambdaStandIn,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host_id, _ = make_ready(control, lambda_stand_in)
    end(control, host_id)
    monkeypatch.setattr(lambda_stand_in, "_terminate", lambda_stand_in._find)
    control.sweep()
    with pytest.raises(CloudSweepFailed, match=r"is overdue, and it is billed.*still running"):
        control.sweep(settings.host_overdue_seconds)
    assert control.host(host_id).overdue_at is not None


def test_an_orphan_whose_termination_has_no_effect_is_reported_and_counted_once(
    control: Control,
    lambda_stand_in: LambdaStandIn,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host_id, _ = make_ready(control, lambda_stand_in)
    with transaction() as session:
        session.delete(session.get_one(Host, host_id))
    monkeypatch.setattr(lambda_stand_in, "_terminate", lambda_stand_in._find)
    control.sweep()
    with pytest.raises(CloudSweepFailed, match="belongs to no host and is billed"):
        control.sweep(settings.host_overdue_seconds)
    assert read_state().orphan_count == 1


@pytest.mark.parametrize("tags", [{"team": "research"}, ["research"], 7])
def test_a_machine_of_others_with_strange_tags_hides_none_of_ours(
    control: Control, lambda_stand_in: LambdaStandIn, tags: Any
) -> None:
    host_id, _ = make_ready(control, lambda_stand_in)
    (machine,) = lambda_stand_in.instances.values()
    lambda_stand_in.instances["f" * 32] = machine | {"id": "f" * 32, "name": "other", "tags": tags}
    end(control, host_id)
    control.sweep()
    assert lambda_stand_in.billed() == ["f" * 32]


def test_an_unexpected_error_of_one_call_keeps_no_host_from_its_end(
    control: Control, lambda_stand_in: LambdaStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    host_id, _ = make_ready(control, lambda_stand_in)
    end(control, host_id)

    def fail(installation: str) -> list[Machine]:
        raise KeyError("Tags")

    monkeypatch.setattr(control.context.cloud, "list_tagged", fail)
    with pytest.raises(CloudSweepFailed, match="cannot be listed: an unexpected KeyError"):
        control.sweep()
    assert lambda_stand_in.billed() == []
    assert "KeyError" in str(read_state().error)


def test_a_host_whose_user_data_cannot_be_made_keeps_no_other_from_its_end(
    control: Control, lambda_stand_in: LambdaStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    control.add_host(id="host_2", attempted_at=control.clock.now, launched_at=control.clock.now,
                     machine_id="0" * 31 + "1", status=HostStatus.booting)  # fmt: skip
    control.clock.advance(7 * 3600)
    control.add_host(id="host_1")

    def fail(*arguments: object) -> str:
        raise ValueError("requirement is not what it must be")

    object.__setattr__(control.context, "make_user_data", fail)
    with pytest.raises(CloudSweepFailed, match="host host_1: an unexpected ValueError"):
        control.sweep()
    assert control.host("host_2").stop_reason is StopReason.spend_cap


def test_a_host_in_a_region_that_the_keys_do_not_show_is_never_called_ended(
    control: Control, lambda_stand_in: LambdaStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    host_id, _ = make_ready(control, lambda_stand_in)
    end(control, host_id)
    monkeypatch.setattr(control.context.cloud, "region", "us-west-2")
    lambda_stand_in.instances.clear()
    for _ in range(3):
        with pytest.raises(CloudSweepFailed, match=r"is in us-east-1.*sees us-west-2 only. It is billed"):
            control.sweep(200)
    assert control.host(host_id).status is HostStatus.terminating


def test_a_machine_that_the_cloud_does_not_know_has_not_ended_while_its_worker_lives(
    control: Control, lambda_stand_in: LambdaStandIn
) -> None:
    host_id, worker_id = make_ready(control, lambda_stand_in)
    lambda_stand_in.instances.clear()
    for _ in range(2):
        with transaction() as session:
            session.get_one(Worker, worker_id).last_seen_at = control.clock.now + timedelta(seconds=200)
        with pytest.raises(CloudSweepFailed, match=r"does not know the machine.*another account"):
            control.sweep(200)
    assert control.host(host_id).status is HostStatus.ready
    control.sweep(200)
    assert control.host(host_id).stop_reason is StopReason.machine_lost


def test_a_sweep_that_is_slower_than_its_lease_still_acts_and_reports(
    control: Control, lambda_stand_in: LambdaStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    host_id, _ = make_ready(control, lambda_stand_in)
    with transaction() as session:
        session.get_one(Host, host_id).max_usd = 0.05
    list_tagged = control.context.cloud.list_tagged

    def list_slowly(installation: str) -> list[Machine]:
        control.clock.advance(LEASE_SECONDS + 5)
        return list_tagged(installation)

    monkeypatch.setattr(control.context.cloud, "list_tagged", list_slowly)
    control.sweep()
    assert control.host(host_id).stop_reason is StopReason.spend_cap
    assert read_state().swept_at == control.clock.now
