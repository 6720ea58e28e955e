"""Lives of many hosts at once, from the request to the end of the bill, while everything around them fails.

Real: the rows, the service behind the endpoints, the keepers, and SQL. Simulated: the clock, the cloud and
its machines, and their workers, which are rows. A process is killed by an exception at any commit or call of
the cloud; the next one starts with the rows alone. The simulation judges by what the cloud would bill.
"""

import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import event, update
from sqlmodel import Session, col, select

from app.hosts import service
from app.hosts.offers import list_offers
from app.hosts.schemas import HostCreate
from app.hosts.settlement import CloudNotHeld, take_over
from app.idempotency.service import CreationRequest, EarlierCreation, check_repetition, record_creation
from app.keys.schemas import KeyCreate
from app.keys.service import create_key
from app.settings import Settings
from app.storage.database import get_engine, read_session, transaction
from app.tables import (
    FINISHED,
    WANTED,
    ApiKey,
    Host,
    HostStatus,
    Job,
    JobHost,
    Run,
    RunStatus,
    Scope,
    StopReason,
    Worker,
    base,
)
from app.tables.base import new_id, utc_now
from tests.integration.workers.cloud_hosts.backups import Rows, dump_database, restore_database
from tests.integration.workers.cloud_hosts.simulated_cloud import (
    START,
    TYPES,
    Crash,
    FaultRates,
    SimulatedClock,
    SimulatedCloud,
    SimulatedMachine,
)
from trainers.configs import Queue, StageKind
from workers.cloud_hosts.context import KeeperContext
from workers.cloud_hosts.keeper import CloudSweepFailed, HostKeeper
from workers.cloud_hosts.orphans import GAP_SECONDS

INSTALLATION = "installation_1"
STEP_SECONDS = 15.0
RESTART_SECONDS = 20.0
MAX_WORK_SECONDS = 3000.0
# As a share of the steps.
LOST_ROWS = 0.005
REQUESTED_ENDS = 0.0005
MIN_BACKUP_AGE = timedelta(seconds=GAP_SECONDS + 60)
DECISION_TIME = timedelta(seconds=300)
# A person reads of machines that wait for a decision within minutes.
TAKE_OVERS = 0.05
# All hosts have ended long before, by their caps if by nothing else.
MAX_STEPS = 4000


class NoTunnels:
    """Workers of simulated machines are rows, which need no connection."""

    def keep(self, hosts: Sequence[Host]) -> None:
        """Do nothing."""


@dataclass
class Report:
    """What became of the hosts, judged by the cloud."""

    hosts: int = 0
    machines: int = 0
    left_billed: list[str] = field(default_factory=list)
    double_launches: list[str] = field(default_factory=list)
    overspent: dict[str, float] = field(default_factory=dict)
    """US dollars above the cap and the price of a sweep, by host."""
    unfinished: list[str] = field(default_factory=list)
    underreported: list[str] = field(default_factory=list)
    """Hosts whose row states less than their machine has cost."""
    unready: list[str] = field(default_factory=list)
    """Hosts that were billed for longer than a boot may take, and never ready."""
    live_keys: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    faults: int = 0
    crashes: int = 0
    spent: float = 0.0
    waiting_jobs: list[str] = field(default_factory=list)
    unasked_acts: list[str] = field(default_factory=list)
    lost_machines: list[str] = field(default_factory=list)
    """Machines that were billed when their host was called ended."""
    key_changes: int = 0
    restorations: int = 0

    def check(self) -> None:
        """Assert the promises."""
        assert self.double_launches == [], f"two machines for one host: {self.double_launches}"
        assert self.left_billed == [], f"billed at the end: {self.left_billed}"
        assert self.overspent == {}, f"above the cap and one sweep: {self.overspent}"
        assert self.unfinished == [], f"rows without an end: {self.unfinished}"
        assert self.underreported == [], f"cost more than stated: {self.underreported}"
        assert self.unready == [], f"never ready, but billed: {self.unready}"
        assert self.unasked_acts == [], f"done before a person had decided: {self.unasked_acts}"
        assert self.lost_machines == [], f"billed after the end of their host: {self.lost_machines}"
        assert self.waiting_jobs == [], f"jobs without an end: {self.waiting_jobs}"
        assert self.live_keys == 0, f"{self.live_keys} keys of ended hosts are valid"


class Simulation:
    """One installation with two control hosts, and people who ask for hosts."""

    def __init__(self, settings: Settings, seed: int, rates: FaultRates) -> None:
        self.settings = settings
        self.random = random.Random(seed)
        self.operator = random.Random(-seed)
        """Decides when people change keys, restore backups and take machines over."""
        self.clock = SimulatedClock()
        self.cloud = SimulatedCloud(self.clock, self.random, rates)
        self.context = KeeperContext(
            cloud=self.cloud,
            installation=INSTALLATION,
            settings=settings,
            tunnels=NoTunnels(),
            make_user_data=lambda host, secret: "#cloud-config",
            clock=self.clock,
        )
        self.crashes = 0
        self.workers: dict[str, str] = {}
        """Ids of the rows of workers, by machine."""
        self.work_until: dict[str, datetime] = {}
        self.leaving: dict[str, datetime] = {}
        self.keepers: list[HostKeeper | None] = [None, None]
        self.restart_at = [START, START]
        self.backup: Rows | None = None
        self.backed_up_at = self.restored_at = self.last_step = START
        self.key_changes = self.restorations = 0

    def run(self, n_hosts: int, max_steps: int = MAX_STEPS) -> Report:
        """Live through `n_hosts` lives; return what became of them."""
        with _crashing_commits(self.cloud), _counted_ids(self.clock):
            self._prepare()
            asked = 0
            for _ in range(max_steps):
                self._pass_time()
                self._change_keys()
                self._restore()
                self._take_over()
                asked += self._ask(n_hosts - asked)
                self._terminate_some(n_hosts)
                self._lose_a_row()
                self._run_workers()
                for number in self.random.choice([[0], [1], [0, 1], [1, 0]]):
                    self._sweep(number)
                if self.cloud.double_launches or (asked == n_hosts and self._is_quiet()):
                    break
        return self._report()

    # The API

    def _prepare(self) -> None:
        with self._calm(), transaction() as session:
            create_key(session, KeyCreate(name="admin", scopes=[Scope.admin]))
            session.add(
                Worker(name="control", host="control", pid=1, capabilities=["cloud:lambda"], queues=["cpu"])
            )
        with self._calm(), transaction() as session:
            session.execute(update(Worker).values(last_seen_at=utc_now() + timedelta(days=1)))
        while not self._has_offers():
            self.clock.advance(STEP_SECONDS)
            self._sweep(0)

    def _has_offers(self) -> bool:
        with read_session() as session:
            return any(offers for _, offers in list_offers(session))

    def _ask(self, left: int) -> int:
        n_asked = min(left, self.random.choice([0, 0, 1, 1, 2, 4]))
        for _ in range(n_asked):
            if self.random.random() < 0.3:
                self._post_job()
            else:
                self._post_host()
        return n_asked

    def _post_host(self) -> None:
        """Post until the request is acknowledged, as clients with an idempotency key do."""
        name = self.random.choice(list(TYPES))
        body = HostCreate(
            cloud=self.cloud.name,
            type=name,
            spot=self.random.random() < 0.3,
            max_usd=round(TYPES[name] * self.random.uniform(1.0, 1.5), 2) + 0.01,
            idle_seconds=self.random.choice([120.0, 600.0, 36_000.0]),
        )
        request = CreationRequest("", "POST /api/v1/hosts", "", new_id("key"), 0, utc_now())

        def record(session: Session, host_id: str) -> None:
            record_creation(session, request, host_id)

        while True:
            try:
                check_repetition(request)
                service.create_host(self.settings, body, "", record)
            except Crash:
                self.crashes += 1
            except EarlierCreation:
                return
            else:
                break
        with self._calm(), transaction() as session:
            session.execute(
                update(Host).where(col(Host.epoch) == 0, col(Host.created_at) > self.clock(3600))
                .values(created_at=self.clock.now)
            )  # fmt: skip

    def _post_job(self) -> None:
        name = self.random.choice(list(TYPES))
        job = Job(name="job")
        wanted = JobHost(
            job_id=job.id,
            cloud=self.cloud.name,
            type=name,
            region="us-west-1",
            spot=self.random.random() < 0.5,
            max_usd=TYPES[name] * self.random.uniform(1.5, 3.0),
        )
        run = Run(
            job_id=job.id,
            position=0,
            name="sft",
            stage=StageKind.sft,
            queue=Queue.cuda,
            config={},
            own_host=True,
        )
        with self._calm(), transaction() as session:
            session.add(job)
            session.flush()
            session.add_all([wanted, run])

    def _terminate_some(self, n_hosts: int) -> None:
        if self.random.random() > REQUESTED_ENDS * n_hosts:
            return
        with read_session() as session:
            hosts = session.exec(select(Host).order_by(col(Host.id))).all()
        if hosts:
            host_id = self.random.choice(hosts).id
            try:
                with transaction() as session:
                    service.terminate_host(session, host_id)
                    # The service writes the time of the database.
                    was_asked = col(Host.id) == host_id, col(Host.stop_reason) == StopReason.requested
                    session.execute(update(Host).where(*was_asked).values(stop_at=self.clock.now))
            except Crash:
                self.crashes += 1

    def _lose_a_row(self) -> None:
        """Delete the row of a host, as the restoration of an older backup does."""
        if self.random.random() > LOST_ROWS:
            return
        with self._calm(), transaction() as session:
            wanted = col(Host.machine_id).is_not(None), col(Host.status).in_(WANTED)
            host = session.exec(select(Host).where(*wanted).order_by(col(Host.id).desc())).first()
            if host is not None:
                session.delete(host)
                session.execute(
                    update(ApiKey).where(col(ApiKey.id) == host.key_id).values(revoked_at=self.clock.now)
                )

    # The operator

    def _pass_time(self) -> None:
        before = self.clock.now
        self.clock.advance(STEP_SECONDS)
        self.cloud.pass_time()
        seconds = (self.clock.now - min(before, self.last_step)).total_seconds()
        self.last_step = self.clock.now
        for machine in self.cloud.machines.values():
            is_undecided = self.cloud.is_held or machine.id in self.cloud.undecided
            if machine.ended_at is None and (is_undecided or machine.account != self.cloud.account):
                machine.unseen_seconds += seconds

    def _change_keys(self) -> None:
        """Restart the keepers with the keys of the other account, or back."""
        is_usual = self.cloud.account == "account-a"
        if self.operator.random() < self.cloud.rates.other_account * (1 if is_usual else 10):
            self.cloud.change_keys("account-b" if is_usual else "account-a")
            self.keepers = [None, None]
            self.key_changes += 1

    def _restore(self) -> None:
        """Back up now and then, and restore the last backup more rarely."""
        rate = self.cloud.rates.restoration
        with self._calm():
            if self.operator.random() < 5 * rate:
                self.backup, self.backed_up_at = dump_database(), self.clock.now
            is_old = self.clock.now - self.backed_up_at > MIN_BACKUP_AGE
            if self.backup is None or not is_old or self.operator.random() > rate:
                return
            # Half of them with another tool, which does not hold the hosts.
            self.cloud.is_held = self.operator.random() < 0.5
            before = self._list_hosts()
            restore_database(self.backup, self.clock, is_held=self.cloud.is_held)
            lost = before - self._list_hosts()
        machines = self.cloud.machines.values()
        self.cloud.undecided |= {machine.id for machine in machines if machine.order.host_id in lost}
        self.restorations += 1
        self.restored_at, self.backup = self.clock.now, None
        self.keepers = [None, None]
        self.workers.clear()
        self.leaving |= dict.fromkeys(self.cloud.machines, self.clock.now)

    def _take_over(self) -> None:
        """Confirm that no other copy of the installation runs, if the service asks for it."""
        if self.operator.random() > TAKE_OVERS or self.clock.now - self.restored_at < DECISION_TIME:
            return
        with self._calm(), transaction() as session, suppress(CloudNotHeld):
            take_over(session, self.cloud.name)
            self.cloud.is_held, self.cloud.undecided = False, set()

    def _list_hosts(self) -> set[str]:
        with read_session() as session:
            return set(session.exec(select(col(Host.id))))

    # The keepers

    def _sweep(self, number: int) -> None:
        if self.clock.now < self.restart_at[number]:
            return
        keeper = self.keepers[number]
        if keeper is None:
            keeper = self.keepers[number] = HostKeeper(self.context, new_id("worker"))
        try:
            keeper.sweep()
        except CloudSweepFailed:
            pass
        except Crash:
            self.crashes += 1
            self.keepers[number] = None
            self.restart_at[number] = self.clock.now + timedelta(seconds=RESTART_SECONDS)

    # The workers of the machines

    def _run_workers(self) -> None:
        alive = [machine for machine in self.cloud.machines.values() if self._is_up(machine)]
        gone = self.workers.keys() - {machine.id for machine in alive}
        if not alive and not gone:
            return
        with self._calm(), transaction() as session:
            for machine_id in sorted(gone):
                self._lose_runs(session, self.workers.pop(machine_id))
            seen = [self.workers[machine.id] for machine in alive if machine.id in self.workers]
            session.execute(
                update(Worker).where(col(Worker.id).in_(seen)).values(last_seen_at=self.clock.now)
                .execution_options(synchronize_session=False)
            )  # fmt: skip
            ids = [machine.order.host_id for machine in alive]
            hosts = {host.id: host for host in session.exec(select(Host).where(col(Host.id).in_(ids)))}
            held: dict[str, list[Run]] = defaultdict(list)
            for run in session.exec(select(Run).where(col(Run.worker_id).in_(seen)).order_by(col(Run.id))):
                held[run.worker_id or ""].append(run)
            for machine in alive:
                if machine.order.host_id not in hosts:
                    continue
                worker_id = self.workers.get(machine.id, "")
                self._run_worker(session, machine, hosts[machine.order.host_id], held[worker_id])

    def _is_up(self, machine: SimulatedMachine) -> bool:
        now = self.clock.now
        up = machine.runs_at is not None and machine.runs_at + timedelta(seconds=120) <= now
        crashed = machine.crashes_at is not None and machine.crashes_at <= now
        return up and not crashed and machine.ended_at is None and machine.id not in self.leaving

    def _run_worker(self, session: Session, machine: SimulatedMachine, host: Host, held: list[Run]) -> None:
        """Let a worker join, take runs, do them, and save and leave them."""
        now = self.clock.now
        worker_id = self.workers.get(machine.id)
        if worker_id is None:
            check = {"name": "torch", "state": "ok" if machine.has_cuda else "error"}
            worker = Worker(
                name=machine.id,
                host=machine.id,
                pid=1,
                queues=["cuda"],
                hardware={"gpus": [{"uuid": machine.id}]},
                host_report={"checks": [check]},
                host_id=host.id,
                job_id=host.job_id,
                last_seen_at=now,
            )
            session.add(worker)
            self.workers[machine.id] = worker.id
            return
        if not host.status.wanted:
            self.leaving[machine.id] = now
            self._lose_runs(session, worker_id)
            session.execute(update(Worker).where(col(Worker.id) == worker_id).values(stopped_at=now))
            return
        for run in held:
            if self.work_until[run.id] <= now:
                run.status, run.worker_id = RunStatus.succeeded, None
        if not held and host.status is HostStatus.ready:
            self._claim(session, worker_id, host)

    def _claim(self, session: Session, worker_id: str, host: Host) -> None:
        if host.job_id is None:
            if self.random.random() < 0.02:
                job = Job(name="shared")
                session.add(job)
                session.flush()
                run = Run(
                    job_id=job.id, position=0, name="sft", stage=StageKind.sft, queue=Queue.cuda, config={},
                    status=RunStatus.running, worker_id=worker_id,
                )  # fmt: skip
                session.add(run)
                self.work_until[run.id] = self.clock.now + timedelta(
                    seconds=self.random.uniform(60, MAX_WORK_SECONDS)
                )
            return
        for run in session.exec(
            select(Run).where(Run.job_id == host.job_id, Run.status == RunStatus.queued, Run.own_host)
        ):
            run.status, run.worker_id = RunStatus.running, worker_id
            self.work_until[run.id] = self.clock.now + timedelta(
                seconds=self.random.uniform(60, MAX_WORK_SECONDS)
            )

    def _lose_runs(self, session: Session, worker_id: str) -> None:
        """Return the runs of a worker that has left to their queue, as the sweeper does; others end."""
        for run in session.exec(select(Run).where(Run.worker_id == worker_id)):
            run.status = RunStatus.queued if run.own_host else RunStatus.cancelled
            run.worker_id = None

    # The end

    def _is_quiet(self) -> bool:
        if any(machine.ended_at is None for machine in self.cloud.machines.values()):
            return False
        with read_session() as session:
            statuses = session.exec(select(col(Host.status))).all()
            runs: Sequence[Run] = session.exec(select(Run).where(Run.own_host)).all()
        return all(status.finished for status in statuses) and all(run.status.finished for run in runs)

    def _report(self) -> Report:
        with read_session() as session:
            hosts = session.exec(select(Host).order_by(col(Host.id))).all()
            keys = session.exec(select(ApiKey).where(col(ApiKey.revoked_at).is_(None))).all()
            runs: Sequence[Run] = session.exec(select(Run).where(Run.own_host)).all()
        report = Report(
            hosts=len(hosts),
            machines=len(self.cloud.machines),
            left_billed=[m.id for m in self.cloud.machines.values() if m.ended_at is None],
            double_launches=self.cloud.double_launches,
            unfinished=[host.id for host in hosts if not host.status.finished],
            live_keys=len(keys) - 1,
            faults=self.cloud.fault_count,
            crashes=self.crashes,
            unasked_acts=self.cloud.unasked_acts,
            key_changes=self.key_changes,
            restorations=self.restorations,
            waiting_jobs=[run.job_id for run in runs if run.status not in FINISHED],
        )
        for host in hosts:
            self._judge(report, host)
        return report

    def _judge(self, report: Report, host: Host) -> None:
        # A machine of a state that was undone by a restoration is not known to the row.
        machines = [
            machine
            for machine in self.cloud.machines.values()
            if machine.order.host_id == host.id
            and (machine.id == host.machine_id or machine.launched_at > self.restored_at)
        ]
        unseen = max((machine.unseen_seconds for machine in machines), default=0.0)
        # The keeper that can end it again starts with its next sweep.
        unseen += STEP_SECONDS if unseen else 0.0
        bill = sum(machine.bill(self.clock.now) for machine in machines)
        report.reasons[f"{host.status}: {host.stop_reason}"] += 1
        report.spent += bill
        allowed = host.max_usd + host.usd_per_hour * (self.settings.host_sweep_seconds + unseen) / 3600
        if bill > allowed:
            report.overspent[host.id] = bill - allowed
        report.lost_machines += [
            machine.id
            for machine in machines
            if machine.id == host.machine_id
            and host.ended_at is not None
            and (machine.ended_at or self.clock.now) > host.ended_at + timedelta(seconds=STEP_SECONDS)
        ]
        own = sum(machine.bill(self.clock.now) for machine in machines if machine.id == host.machine_id)
        if own > host.spend_usd + 1e-6:
            report.underreported.append(host.id)
        longest = timedelta(seconds=self.settings.host_boot_seconds + 300 + unseen)
        slow = any((m.ended_at or self.clock.now) - m.launched_at > longest for m in machines)
        # A restoration forgets that a host was ready.
        if host.ready_at is None and slow and host.created_at > self.restored_at:
            report.unready.append(host.id)

    @contextmanager
    def _calm(self) -> Iterator[None]:
        """Let nothing crash: this is the simulation's own work."""
        rate, self.cloud.rates.crash = self.cloud.rates.crash, 0.0
        try:
            yield
        finally:
            self.cloud.rates.crash = rate


@contextmanager
def _counted_ids(clock: SimulatedClock) -> Iterator[None]:
    """Make ids sort in the order of their creation, so that a seed always has the same outcome."""
    last = 0

    def time_ns() -> int:
        nonlocal last
        last = max(last + 1, int(clock.now.timestamp() * 1000))
        return last * 1_000_000

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "time", SimpleNamespace(time_ns=time_ns, time=time.time))
        yield


@contextmanager
def _crashing_commits(cloud: SimulatedCloud) -> Iterator[None]:
    """Kill the process before or after a commit, now and then."""

    def crash(_session: Session) -> None:
        cloud.crash_perhaps()

    def prepare(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")  # The machine itself does not crash.

    get_engine().dispose()
    event.listen(get_engine(), "connect", prepare)
    event.listen(Session, "before_commit", crash)
    event.listen(Session, "after_commit", crash)
    try:
        yield
    finally:
        event.remove(Session, "before_commit", crash)
        event.remove(Session, "after_commit", crash)
