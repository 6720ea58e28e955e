"""A state machine of deployments: clients, workers and the clock act in any order on a real database.

Two names are deployed again and again. The machine knows which attempt holds a deployment and until when, and
checks after each step that names have one owner, that final statuses stay, and that no stale attempt writes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import count

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlmodel import Session, col, select

from app.deployments import lifecycle
from app.deployments.create import insert_deployment
from app.runs.lifecycle import StaleAttempt
from app.settings import Settings
from app.storage.database import read_session, transaction
from app.tables import Deployment, DeploymentStatus
from tests.integration.app.machines import reset_database
from trainers.configs import EngineKind, Queue

LEASE_SECONDS = 3000.0
# Sums of them differ from the lease by more than the time that an example itself takes, on any host.
SHORT_SECONDS, LONG_SECONDS = 1200.0, 4500.0
N_WORKERS = 2
MAX_DEPLOYMENTS, MAX_WITH_SUCCESSORS = 3, 6
N_NEWEST = 4
NAMES = ("one", "two")
CLOCK_COLUMNS = ("lease_expires_at", "queued_at", "created_at")
ERROR = {"code": "engine_failed", "message": "It failed.", "hint": None}
Pick = st.integers(0, 1000)
Engines = st.sampled_from(["", "shared"])


@dataclass
class ModelDeployment:
    """The state of a deployment that the machine expects."""

    attempt: int = 0
    is_held: bool = False
    lease_ends: float = 0.0
    final: DeploymentStatus | None = None


@dataclass(frozen=True)
class Holder:
    """An attempt as its worker knows it."""

    deployment_id: str
    attempt: int


class DeploymentMachine(RuleBasedStateMachine):
    """Creations, claims, engines that fail or fall asleep, leases and takeovers of names, in any order."""

    settings: Settings

    @initialize()
    def start(self) -> None:
        """Empty the database, register the workers, and serve one deployment."""
        self.now = 0.0
        self.deployments: dict[str, ModelDeployment] = {}
        self.holders: list[Holder] = []
        self.workers = reset_database(N_WORKERS)
        self.bases = count(1)
        # Hypothesis leaves out some rules in each example: without a deployment, nothing would happen.
        self._create(NAMES[0], "")
        self._claim_all(self.workers[0])
        self._mark_ready(self.holders[0])

    # Clients

    @precondition(lambda self: len(self.deployments) < MAX_DEPLOYMENTS)
    @rule(name=st.sampled_from(NAMES), engine=Engines)
    def create(self, name: str, engine: str) -> None:
        self._create(name, engine)

    @precondition(lambda self: len(self.deployments) < MAX_WITH_SUCCESSORS and self._serving())
    @rule(pick=Pick, engine=Engines)
    def create_successor(self, pick: int, engine: str) -> None:
        serving = self._serving()
        self._create(serving[pick % len(serving)].name, engine)

    @precondition(lambda self: self.deployments)
    @rule(pick=Pick)
    def stop(self, pick: int) -> None:
        with transaction() as session:
            lifecycle.stop(session, self._pick_id(pick))

    @precondition(lambda self: self.deployments)
    @rule(pick=Pick)
    def wake(self, pick: int) -> None:
        with transaction() as session:
            lifecycle.wake(session, self._pick_id(pick))

    # Workers

    @rule(pick=Pick)
    def claim(self, pick: int) -> None:
        self._claim_all(self.workers[pick % N_WORKERS])

    @precondition(lambda self: self.holders)
    @rule(pick=Pick)
    def renew(self, pick: int) -> None:
        holder = self._pick_holder(pick)
        if self._write(holder, lambda s: lifecycle.renew(s, *self._key(holder), LEASE_SECONDS)):
            self.deployments[holder.deployment_id].lease_ends = self.now + LEASE_SECONDS

    @precondition(lambda self: self.holders)
    @rule(pick=Pick)
    def mark_ready(self, pick: int) -> None:
        self._mark_ready(self._pick_holder(pick))

    @precondition(lambda self: self.holders)
    @rule(pick=Pick)
    def restart(self, pick: int) -> None:
        holder = self._pick_holder(pick)
        self._write(holder, lambda s: lifecycle.mark_restarting(s, *self._key(holder), ERROR))

    @precondition(lambda self: self.holders)
    @rule(pick=Pick, kind=st.sampled_from(["sleep", "release", "end", "fail"]))
    def leave(self, pick: int, kind: str) -> None:
        holder = self._pick_holder(pick)
        leave: dict[str, Callable[[Session], bool]] = {
            "sleep": lambda s: lifecycle.sleep(s, *self._key(holder)),
            "release": lambda s: lifecycle.release(s, *self._key(holder)),
            "end": lambda s: lifecycle.end(s, *self._key(holder), None),
            "fail": lambda s: lifecycle.end(s, *self._key(holder), ERROR),
        }
        if self._write(holder, leave[kind]):
            self.deployments[holder.deployment_id].is_held = False

    # Time

    @rule()
    def advance_clock_within_leases(self) -> None:
        self._advance(SHORT_SECONDS)

    @rule()
    def advance_clock_past_leases(self) -> None:
        self._advance(LONG_SECONDS)

    @rule()
    def sweep(self) -> None:
        with transaction() as session:
            lifecycle.release_expired(session)
        for deployment in self.deployments.values():
            if deployment.is_held and deployment.lease_ends < self.now:
                deployment.is_held = False

    # Invariants

    @invariant()
    def rows_agree_with_the_model(self) -> None:
        for row in self._read():
            deployment = self.deployments[row.id]
            assert row.attempt == deployment.attempt, "each claim is one attempt"
            assert row.status.held == deployment.is_held, f"{row.status}, held: {deployment.is_held}"
            assert (row.worker_id is not None) == (row.lease_expires_at is not None) == row.status.held
            assert (row.address is not None) <= row.status.held
            assert deployment.final in (None, row.status), f"{deployment.final} became {row.status}"
            if row.status.finished:
                deployment.final = row.status

    @invariant()
    def a_name_has_one_owner_and_one_successor(self) -> None:
        live = [row for row in self._read() if row.status in lifecycle.LIVE]
        serving = [row for row in live if row.status is DeploymentStatus.ready]
        assert all(row.replaces is None for row in serving), "a successor that is ready owns its name"
        for name in NAMES:
            roles = [row.replaces is None for row in live if row.name == name]
            assert roles.count(True) <= 1 and roles.count(False) <= 1, f"{name}: {roles}"

    def teardown(self) -> None:
        """Check that every deployment that is not stopped or asleep becomes ready."""
        if not hasattr(self, "bases"):
            return
        for _ in range(4):
            self._advance(LONG_SECONDS)
            self.sweep()
            for worker in self.workers:
                self._claim_all(worker)
            for holder in list(self.holders):
                self._mark_ready(holder)
        waiting = {row.status for row in self._read()} & {DeploymentStatus.queued, DeploymentStatus.starting}
        assert not waiting, f"stuck: {waiting}"
        self.rows_agree_with_the_model()
        self.a_name_has_one_owner_and_one_successor()

    def _create(self, name: str, engine: str) -> None:
        before = [row.id for row in self._serving() if row.name == name]
        base = f"hub/{next(self.bases)}"
        created = Deployment(name=name, base=base, engine=EngineKind.hf, queue=Queue.cpu, engine_key=engine)
        with transaction() as session:
            insert_deployment(session, created)
        self.deployments[created.id] = ModelDeployment()
        after = [row.id for row in self._serving() if row.name == name]
        assert before == after, "the name is not served until its successor is ready"

    def _claim_all(self, worker: str) -> None:
        with read_session() as session:
            waiting = [row.id for row in lifecycle.list_claimable(session, worker, [Queue.cpu])]
        for deployment_id in waiting:
            with transaction() as session:
                claimed = lifecycle.claim(session, deployment_id, worker, LEASE_SECONDS)
            if claimed is None:
                continue
            deployment = self.deployments[deployment_id]
            assert not deployment.is_held, "a deployment that another attempt holds was claimed"
            deployment.attempt += 1
            deployment.is_held, deployment.lease_ends = True, self.now + LEASE_SECONDS
            self.holders.append(Holder(deployment_id, deployment.attempt))

    def _mark_ready(self, holder: Holder) -> None:
        self._write(holder, lambda s: lifecycle.mark_ready(s, *self._key(holder), "http://engine", "model"))

    def _write(self, holder: Holder, write: Callable[[Session], bool | None]) -> bool:
        """Write as an attempt, and be refused if it does not hold the deployment; return the result."""
        deployment = self.deployments[holder.deployment_id]
        is_live = (
            deployment.is_held and deployment.attempt == holder.attempt and self.now < deployment.lease_ends
        )
        if not is_live:
            with transaction() as session, pytest.raises(StaleAttempt):
                write(session)
            return False
        with transaction() as session:
            return write(session) is not False

    def _advance(self, seconds: float) -> None:
        """Advance the database's clock: every time in it is that much longer ago."""
        self.now += seconds
        with transaction() as session:
            for deployment in session.exec(select(Deployment)).all():
                for column in CLOCK_COLUMNS:
                    if (value := getattr(deployment, column)) is not None:
                        setattr(deployment, column, value - timedelta(seconds=seconds))

    def _read(self) -> Sequence[Deployment]:
        with read_session() as session:
            return session.exec(select(Deployment).order_by(col(Deployment.id))).all()

    def _serving(self) -> list[Deployment]:
        return [row for row in self._read() if row.status is DeploymentStatus.ready]

    def _pick_id(self, pick: int) -> str:
        return list(self.deployments)[pick % len(self.deployments)]

    def _pick_holder(self, pick: int) -> Holder:
        """Return one of the newest attempts, of which some have lost their lease."""
        return self.holders[-1 - pick % min(N_NEWEST, len(self.holders))]

    @staticmethod
    def _key(holder: Holder) -> tuple[str, int]:
        return holder.deployment_id, holder.attempt
