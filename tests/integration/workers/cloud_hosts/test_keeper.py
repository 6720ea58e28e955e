"""The keeper with the client of a real cloud, against a stand-in for its API, one sweep after the other.

Goal: the states of a host in their order, and what is reported when something fails. Method: the clock is
simulated, and workers are rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlmodel import col, select

from app.hosts import lifecycle
from app.hosts.service import terminate_host
from app.settings import Settings
from app.storage.database import read_session, transaction
from app.tables import (
    ApiKey,
    CloudState,
    Host,
    HostStatus,
    Job,
    JobHost,
    Run,
    RunStatus,
    StopReason,
    Webhook,
    WebhookDelivery,
    Worker,
)
from tests.clouds.faults import Fault
from tests.clouds.lambda_stand_in import TYPES, LambdaStandIn
from tests.integration.workers.cloud_hosts.simulated_cloud import SimulatedClock
from tests.integration.workers.clouds.conftest import lambda_account, lambda_stand_in, open_lambda
from trainers.configs import Queue, StageKind
from trainers.configs.clouds import CloudName
from workers.cloud_hosts.context import LEASE_SECONDS, SETTLE_SECONDS, KeeperContext
from workers.cloud_hosts.keeper import CloudSweepFailed, HostKeeper
from workers.clouds.accounts import LambdaAccount
from workers.clouds.lambda_cloud import LambdaCloud
from workers.clouds.protocol import Cloud

__all__ = ["lambda_account", "lambda_stand_in", "open_lambda"]

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


class RecordedTunnels:
    """Remembers the hosts to which tunnels were kept last."""

    def __init__(self) -> None:
        self.hosts: list[str] = []

    def keep(self, hosts: Sequence[Host]) -> None:
        self.hosts = [host.id for host in hosts]


class Control:
    """A control host with one keeper, and rows that a test changes."""

    def __init__(self, settings: Settings, cloud: LambdaCloud) -> None:
        self.clock, self.tunnels = SimulatedClock(), RecordedTunnels()
        self.secrets: list[str] = []
        self.context = KeeperContext(
            cloud=cloud,
            installation="installation_1",
            settings=settings,
            tunnels=self.tunnels,
            make_user_data=self._make_user_data,
            clock=self.clock,
        )
        self.keeper = HostKeeper(self.context, "worker_1")

    def use(self, cloud: Cloud) -> None:
        """Restart the keeper with other keys."""
        self.context = replace(self.context, cloud=cloud, accepted={})
        self.keeper = HostKeeper(self.context, "worker_1")

    def _make_user_data(self, host: Host, secret: str) -> str:
        self.secrets.append(secret)
        return "#!/bin/sh\n"

    def add_host(self, **values: Any) -> str:
        defaults: dict[str, Any] = {
            "cloud": CloudName.lambda_cloud, "type": "gpu_1x_a10", "region": "us-east-1",
            "usd_per_hour": 0.75, "max_usd": 5.0, "idle_seconds": 600.0, "created_at": self.clock.now,
        }  # fmt: skip
        host = Host(**(defaults | values))
        with transaction() as session:
            session.add(host)
        return host.id

    def add_worker(self, host_id: str) -> str:
        worker = Worker(
            name="w", host="h", pid=1, queues=["cuda"], host_id=host_id, last_seen_at=self.clock.now,
            hardware={"gpus": [{"uuid": "GPU-1"}]},
            host_report={"checks": [{"name": "torch", "state": "ok"}]},
        )  # fmt: skip
        with transaction() as session:
            session.add(worker)
        return worker.id

    def sweep(self, seconds: float = 15) -> None:
        self.clock.advance(seconds)
        self.keeper.sweep()

    def host(self, host_id: str) -> Host:
        with read_session() as session:
            return session.get_one(Host, host_id)


@pytest.fixture
def control(
    settings: Settings, lambda_account: LambdaAccount, open_lambda: Callable[[LambdaAccount], LambdaCloud]
) -> Control:
    return Control(settings, open_lambda(lambda_account))


def make_ready(control: Control, stand_in: LambdaStandIn, **values: Any) -> tuple[str, str]:
    """Return the ids of a host that is ready, and of its worker."""
    host_id = control.add_host(**values)
    control.sweep()
    (machine_id,) = stand_in.instances
    stand_in.boot(machine_id)
    control.sweep()
    worker_id = control.add_worker(host_id)
    control.sweep()
    assert control.host(host_id).status is HostStatus.ready
    return host_id, worker_id


def test_a_host_is_launched_joins_and_ends_when_it_is_idle(
    control: Control, lambda_stand_in: LambdaStandIn
) -> None:
    host_id = control.add_host()
    control.sweep()
    (machine_id,) = lambda_stand_in.instances
    booting = control.host(host_id)
    assert (booting.status, booting.machine_id, booting.epoch) == (HostStatus.booting, machine_id, 1)
    lambda_stand_in.boot(machine_id)
    control.sweep()
    assert control.host(host_id).address == "203.0.113.7"
    control.sweep()
    assert (control.host(host_id).status, control.tunnels.hosts) == (HostStatus.joining, [host_id])
    control.add_worker(host_id)
    control.sweep()
    assert control.host(host_id).status is HostStatus.ready
    with transaction() as session:
        worker = session.scalars(select(Worker)).one()
        worker.last_seen_at = control.clock.now + timedelta(seconds=700)
    control.sweep(700)
    assert control.host(host_id).stop_reason is StopReason.idle
    for _ in range(3):
        control.sweep(130)
    ended = control.host(host_id)
    assert (ended.status, lambda_stand_in.billed()) == (HostStatus.terminated, [])
    assert ended.spend_usd >= 0.75 * 700 / 3600
    with read_session() as session:
        assert session.scalars(select(ApiKey)).one().revoked_at is not None


def test_a_lost_launch_response_is_found_by_the_tag_and_nothing_is_launched_twice(
    control: Control, lambda_stand_in: LambdaStandIn
) -> None:
    lambda_stand_in.plan.add("POST /instance-operations/launch", Fault.lost_response)
    host_id = control.add_host()
    control.sweep()
    assert control.host(host_id).machine_id is None
    control.sweep()
    assert [control.host(host_id).machine_id] == list(lambda_stand_in.instances)
    control.sweep(SETTLE_SECONDS)
    assert len(lambda_stand_in.instances) == 1


def test_a_termination_that_fails_is_repeated_and_reported_as_overdue(
    control: Control, lambda_stand_in: LambdaStandIn, settings: Settings
) -> None:
    with transaction() as session:
        session.add(
            Webhook(name="w", url="https://example.com", event_types=["host.termination_overdue"],
                    encrypted_secret="", secret_hint="")
        )  # fmt: skip
    host_id, _ = make_ready(control, lambda_stand_in)
    with transaction() as session:
        session.get_one(Host, host_id).status = HostStatus.terminating
        session.get_one(Host, host_id).stop_at = control.clock.now
    lambda_stand_in.plan.add("POST /instance-operations/terminate", *[Fault.lost_request] * 4)
    for _ in range(2):
        with pytest.raises(CloudSweepFailed):
            control.sweep(30)
    for _ in range(2):
        with pytest.raises(CloudSweepFailed, match="is overdue, and it is billed"):
            control.sweep(settings.host_overdue_seconds)
    assert control.host(host_id).terminate_failures == 4
    with read_session() as session:
        assert len(session.scalars(select(WebhookDelivery)).all()) == 1
        assert "overdue" in str(session.scalars(select(CloudState)).one().error)
    control.sweep()
    control.sweep()
    assert (control.host(host_id).status, lambda_stand_in.billed()) == (HostStatus.terminated, [])


def test_another_keeper_waits_for_the_end_of_the_lease_and_the_first_then_writes_nothing(
    control: Control,
) -> None:
    control.sweep()
    other = HostKeeper(control.context, "worker_2")
    other.sweep()
    with read_session() as session:
        assert session.scalars(select(CloudState)).one().worker_id == "worker_1"
    control.clock.advance(LEASE_SECONDS + 1)
    other.sweep()
    stale = lifecycle.KeeperLease(CloudName.lambda_cloud, "worker_1", 1)
    with pytest.raises(lifecycle.LeaseTaken), transaction() as session:
        lifecycle.update_cloud(session, stale, {"error": "late"})
    host_id = control.add_host()
    with transaction() as session:
        guards = [lifecycle.is_kept_by(stale, control.clock)]
        assert lifecycle.move(session, host_id, HostStatus.failed, guards=guards) is None


def test_a_machine_of_another_row_or_of_none_is_terminated(
    control: Control, lambda_stand_in: LambdaStandIn
) -> None:
    host_id, _ = make_ready(control, lambda_stand_in)
    with transaction() as session:
        session.delete(session.get_one(Host, host_id))
    control.sweep()
    assert lambda_stand_in.billed() == []
    with read_session() as session:
        assert session.scalars(select(CloudState)).one().orphan_count == 1


def test_a_ready_host_saves_until_its_worker_has_left(
    control: Control, lambda_stand_in: LambdaStandIn
) -> None:
    host_id, worker_id = make_ready(control, lambda_stand_in)
    with transaction() as session:
        terminate_host(session, host_id)
        session.get_one(Host, host_id).stop_at = control.clock.now
    control.sweep()
    assert (control.host(host_id).status, control.tunnels.hosts) == (HostStatus.stopping, [host_id])
    with transaction() as session:
        session.get_one(Worker, worker_id).stopped_at = control.clock.now
    control.sweep()
    control.sweep()
    assert lambda_stand_in.billed() == []


def test_a_host_that_costs_its_cap_ends_before(control: Control, lambda_stand_in: LambdaStandIn) -> None:
    host_id, worker_id = make_ready(control, lambda_stand_in, max_usd=0.75)
    while control.host(host_id).status is HostStatus.ready:
        with transaction() as session:
            session.get_one(Worker, worker_id).last_seen_at = control.clock.now + timedelta(seconds=60)
            session.get_one(Host, host_id).last_busy_at = control.clock.now
        control.sweep(60)
    host = control.host(host_id)
    assert host.stop_reason is StopReason.spend_cap
    assert host.launched_at is not None
    assert 0.6 < 0.75 * (control.clock.now - host.launched_at).total_seconds() / 3600 < 0.75


def add_job(control: Control, max_usd: float) -> str:
    job = Job(name="job")
    with transaction() as session:
        session.add(job)
        session.flush()
        session.add(
            JobHost(job_id=job.id, cloud=CloudName.lambda_cloud, type="gpu_1x_a10", region="us-east-1",
                    max_usd=max_usd)
        )  # fmt: skip
        session.add(
            Run(job_id=job.id, position=0, name="sft", stage=StageKind.sft, queue=Queue.cuda, config={},
                own_host=True)
        )  # fmt: skip
    return job.id


def test_a_job_gets_one_host_with_the_rest_of_its_budget_until_that_is_used(
    control: Control, lambda_stand_in: LambdaStandIn
) -> None:
    control.sweep()
    job_id = add_job(control, max_usd=2.0)
    control.sweep()
    control.sweep()
    with transaction() as session:
        first = session.scalars(select(Host).where(col(Host.job_id) == job_id)).one()
        first.status, first.spend_usd, first.ready_at = HostStatus.terminated, 1.5, control.clock.now
    control.sweep()
    with transaction() as session:
        second = session.scalars(select(Host).where(col(Host.id) != first.id)).one()
        assert second.max_usd == pytest.approx(0.5)
        second.status, second.spend_usd, second.ready_at = HostStatus.terminated, 0.45, control.clock.now
    control.sweep()
    with read_session() as session:
        run = session.scalars(select(Run)).one()
    assert run.error is not None
    assert (run.status, run.error["code"]) == (RunStatus.failed, "host_budget_used")


def test_a_run_fails_after_five_hosts_that_were_never_ready(control: Control) -> None:
    control.sweep()
    job_id = add_job(control, max_usd=100.0)
    for number in range(5):
        control.add_host(
            job_id=job_id,
            status=HostStatus.failed,
            ended_at=control.clock.now,
            error={"code": "host_unavailable", "message": f"no GPU {number}", "hint": None},
        )
    control.sweep()
    with read_session() as session:
        run = session.scalars(select(Run)).one()
        assert len(session.scalars(select(Host)).all()) == 5
    assert run.error is not None
    assert (run.status, run.error["code"]) == (RunStatus.failed, "host_unavailable")
    assert "no GPU 4" in run.error["message"]


def read_run() -> Run:
    with read_session() as session:
        return session.scalars(select(Run)).one()


def test_a_job_whose_hosts_failed_is_counted_anew_when_a_person_retries_it(control: Control) -> None:
    control.sweep()
    job_id = add_job(control, max_usd=100.0)
    for _ in range(5):
        control.add_host(job_id=job_id, status=HostStatus.failed, ended_at=control.clock.now)
    control.clock.advance(60)
    with transaction() as session:
        session.get_one(JobHost, job_id).counted_from = control.clock.now
    control.sweep()
    with read_session() as session:
        hosts = session.scalars(select(Host)).all()
    assert (read_run().status, len(hosts)) == (RunStatus.queued, 6)


def test_a_job_whose_type_is_not_offered_any_more_fails_with_the_reason(
    control: Control, settings: Settings
) -> None:
    control.sweep()
    job_id = add_job(control, max_usd=100.0)
    with transaction() as session:
        session.get_one(JobHost, job_id).region = "us-west-1"
    control.sweep()
    control.sweep(settings.host_launch_seconds - 60)
    assert read_run().status is RunStatus.queued
    control.sweep(60)
    run = read_run()
    assert run.error is not None
    assert (run.status, run.error["code"]) == (RunStatus.failed, "host_unavailable")
    assert "lambda has not offered the type gpu_1x_a10 in us-west-1 for 900 s" in run.error["message"]
    assert "GET /api/v1/hosts/offers" in run.error["hint"]


def test_the_offers_are_read_again_while_a_job_waits_for_one(
    control: Control, lambda_stand_in: LambdaStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    control.sweep()
    job_id = add_job(control, max_usd=100.0)
    with transaction() as session:
        session.get_one(JobHost, job_id).region = "us-west-1"
    control.sweep()
    offers = {**TYPES, "gpu_1x_a10": (*TYPES["gpu_1x_a10"][:5], ("us-west-1",))}
    monkeypatch.setattr("tests.clouds.lambda_stand_in.TYPES", offers)
    control.sweep(130)
    control.sweep()
    control.sweep()
    assert len(lambda_stand_in.billed()) == 1


@pytest.mark.parametrize(
    ("fault", "hint"), [(Fault.unauthorized, "still valid"), (Fault.quota, "higher quota")]
)
def test_a_refused_launch_names_the_cloud_once_and_what_to_do(
    control: Control, lambda_stand_in: LambdaStandIn, fault: Fault, hint: str
) -> None:
    lambda_stand_in.plan.add("POST /instance-operations/launch", fault)
    host_id = control.add_host()
    control.sweep()
    error = control.host(host_id).error
    assert error is not None
    assert error["message"].startswith("Lambda: POST /instance-operations/launch: ")
    assert hint in error["hint"]


def test_a_machine_that_was_preempted_is_terminated_too(
    control: Control, lambda_stand_in: LambdaStandIn
) -> None:
    host_id, worker_id = make_ready(control, lambda_stand_in)
    (machine,) = lambda_stand_in.instances.values()
    machine["status"] = "preempted"
    with transaction() as session:
        session.get_one(Worker, worker_id).stopped_at = control.clock.now
    control.sweep()
    assert (machine["status"], control.host(host_id).stop_reason) == ("terminated", StopReason.interrupted)
