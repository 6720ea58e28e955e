"""The leader of a run on several hosts: it starts all nodes at once, and ends the attempt when one is lost.

Only the leader writes events, checkpoints and the status of the run. The other nodes write their own rows.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from app.runs.groups.members import MemberState, list_members, update_member
from app.scheduling.incidents import describe_error
from app.storage.database import DATABASE_UNAVAILABLE, database_now, read_session, transaction
from app.tables import Run
from trainers.runtime import run_dir as files
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError
from trainers.runtime.launch_command import HeldPort, NodePlace, NoFreePort, hold_port
from workers.hosts.lease import Lease
from workers.hosts.worker import WorkerContext
from workers.inputs.errors import LaunchStopped
from workers.runs.launch import Launch
from workers.runs.results import ReportedError

POLL_SECONDS = 0.5
# A node's program ends seconds after one of another node has failed, unless it is stuck in a driver.
FAILED_NODE_SECONDS = 10.0
# The programs of all nodes end within seconds of each other; then each worker publishes its log.
NODE_END_SECONDS = 30.0
# What a process reports because of another one's failure, or because it was killed.
CONSEQUENCES = (
    ErrorCode.rank_lost,
    ErrorCode.node_lost,
    ErrorCode.program_killed,
    ErrorCode.program_without_result,
)

logger = logging.getLogger(__name__)


class NodeLost(TunesmithError):
    code = ErrorCode.node_lost


class NodesDidNotMeet(TunesmithError):
    """The launchers ended, and no process has reported an error: they may not reach each other."""

    code = ErrorCode.rank_lost


class GroupLeader:
    """The other nodes of an attempt, as its leader sees them."""

    def __init__(self, run: Run, worker: WorkerContext) -> None:
        self.is_stopping = False
        """Whether the worker of another node is shutting down: the run must save its state and stop."""
        self._run = run
        self._worker = worker
        self._settings = worker.settings
        self._port: HeldPort | None = None
        self._lost: NodeLost | None = None
        self._failed_at: float | None = None

    @property
    def must_kill(self) -> bool:
        """Whether this node's program cannot continue without the others."""
        has_failed = self._failed_at is not None and time.monotonic() - self._failed_at > FAILED_NODE_SECONDS
        return self._lost is not None or has_failed

    def meet(self, launch: Launch, must_stop: Callable[[], bool]) -> Launch:
        """Wait until all nodes have their inputs, and return the launch with the place of this one.

        Raises LaunchStopped if the run must stop, and the error of a node that failed or was lost.
        """
        self._update(must_stop, ready_at=database_now())
        while not all(member.is_ready for member in self._poll_others()):
            if must_stop() or self.is_stopping:
                raise LaunchStopped
            if (error := self._lost or self._find_first_error()) is not None:
                raise error
            time.sleep(POLL_SECONDS)
        address = self._worker.node_address
        assert address is not None, "a worker without an address makes no offers"
        try:
            self._port = hold_port(address, self._settings.node_port_range)
        except NoFreePort as error:
            raise NodesDidNotMeet(
                f"The run cannot start on its hosts: {error}.",
                "Set TUNESMITH_NODE_PORTS to a range with free ports, and TUNESMITH_NODE_ADDRESS to an "
                "address of this host.",
            ) from error
        port = self._port.number
        self._update(must_stop, port=port)
        run = self._run
        place = NodePlace(0, run.nodes, address, address, port, f"{run.id}.{run.attempt}")
        return launch.on_node(run, self._settings, place)

    def close(self) -> None:
        """Release the port where the processes have met."""
        if self._port is not None:
            self._port.release()

    def poll(self) -> None:
        """Read what the other nodes report."""
        others = self._poll_others()
        if self._failed_at is None and any(member.error for member in others):
            self._failed_at = time.monotonic()

    def wait_for_ends(self, lease: Lease) -> None:
        """Wait, within a bound, until the other nodes have published their files and reported their ends."""
        if self._lost is not None:
            return
        seconds = NODE_END_SECONDS if self._failed_at is None else FAILED_NODE_SECONDS
        deadline = time.monotonic() + seconds
        while not all(member.has_ended or member.is_lost for member in self._list_others()):
            if time.monotonic() > deadline or lease.lost.wait(POLL_SECONDS):
                return

    def find_cause(self, own: TunesmithError | None) -> TunesmithError | None:
        """Return the error of the run: the earliest of all nodes that is not the consequence of another."""
        if self._lost is not None:
            return self._lost
        causes = []
        if own is not None:
            named = _name_node(0, self._worker.registration["name"], own)
            causes.append((own.code in CONSEQUENCES, time_of(own), named))
        for member in self._list_others():
            if member.error is not None:
                error = _as_error(member)
                causes.append((error.code in CONSEQUENCES, time_of(error), error))
        if not causes:
            return own
        is_consequence, _, cause = min(causes, key=lambda cause: cause[:2])
        if is_consequence and cause.code is ErrorCode.program_without_result:
            return NodesDidNotMeet(
                f"A launcher ended before the processes of {self._run.nodes} hosts had met: {cause.message}",
                "Read the logs of all nodes. The hosts must reach each other on all ports: see "
                "docs/guides/several-hosts.md.",
            )
        return cause

    def _poll_others(self) -> list[MemberState]:
        others = self._list_others()
        self.is_stopping = self.is_stopping or any(member.is_stopping for member in others)
        lost = next((member for member in others if member.is_lost), None)
        if self._lost is None and (lost is not None or len(others) < self._run.nodes - 1):
            name = f"node {lost.node_rank} ({lost.worker_name})" if lost is not None else "A node"
            self._lost = NodeLost(
                f"{name[0].upper()}{name[1:]} of attempt {self._run.attempt} stopped sending its heartbeat.",
                "Check whether its host is up and reaches the database. The run resumes from its last "
                "checkpoint when enough workers are free.",
            )
            logger.warning("%s", self._lost.message, extra={"run_id": self._run.id})
        return others

    def _find_first_error(self) -> TunesmithError | None:
        errors = [_as_error(member) for member in self._list_others() if member.error is not None]
        return min(errors, key=time_of, default=None)

    def _list_others(self) -> list[MemberState]:
        try:
            with read_session() as session:
                members = list_members(session, self._run.id, self._run.attempt, self._settings.lease_seconds)
        except DATABASE_UNAVAILABLE:
            # The lease decides how long this may last.
            return self._unknown()
        return [member for member in members if member.node_rank > 0]

    def _unknown(self) -> list[MemberState]:
        ranks = range(1, self._run.nodes)
        return [MemberState(rank, "", "", False, False, False, False, None) for rank in ranks]

    def _update(self, must_stop: Callable[[], bool], **values: Any) -> None:
        """Write into this node's row, and wait for a database that is unavailable; raises LaunchStopped."""
        run = self._run
        while not must_stop():
            try:
                with transaction() as session:
                    update_member(session, run.id, run.attempt, self._worker.worker_id, **values)
            except DATABASE_UNAVAILABLE as error:
                logger.warning(
                    "cannot write to the database: %s", describe_error(error), extra={"run_id": run.id}
                )
                time.sleep(POLL_SECONDS)
            else:
                return
        raise LaunchStopped


def time_of(error: TunesmithError) -> str:
    """Return when a program has reported an error; now for one that its worker has found."""
    return (isinstance(error, ReportedError) and error.time) or files.utc_now()


def _as_error(member: MemberState) -> ReportedError:
    error = member.error or {}
    values = (error.get(name) for name in ("hint", "details", "time"))
    reported = ReportedError(ErrorCode(error["code"]), error["message"], *values)
    return _name_node(member.node_rank, member.worker_name, reported)


def _name_node(rank: int, worker_name: str, error: TunesmithError) -> ReportedError:
    message = f"On node {rank} ({worker_name}): {error.message}"
    return ReportedError(error.code, message, error.hint, error.details, time_of(error))
