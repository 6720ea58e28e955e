"""A node of a run on several hosts that does not lead it; its program ends with the leader's attempt."""

import logging
import math
import time
from typing import Any

from app.runs.groups.members import AttemptState, read_attempt, renew_member, update_member
from app.runs.lifecycle import StaleAttempt
from app.scheduling.incidents import describe_error
from app.storage.database import DATABASE_UNAVAILABLE, database_now, read_session, transaction
from app.tables import Run, RunStatus
from trainers.runtime import run_dir as files
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError
from trainers.runtime.launch_command import NodePlace
from workers.hosts.environments import empty_folder
from workers.hosts.guarded_process import GuardedProcess, start_guarded_process
from workers.hosts.lease import Lease
from workers.hosts.stage_limits import explain_limit
from workers.hosts.worker import WorkerContext
from workers.inputs.errors import LaunchError, LaunchStopped
from workers.nodes.leader import time_of
from workers.runs import results
from workers.runs.claim import ClaimedRun
from workers.runs.complete import publish_files
from workers.runs.launch import Launch, prepare_launch, remove_run_dir

POLL_SECONDS = 1.0

logger = logging.getLogger(__name__)


def execute_member(worker: WorkerContext, claimed: ClaimedRun) -> None:
    """Execute this node's part of an attempt, until its program or the attempt has ended."""
    run, seconds = claimed.run, worker.settings.lease_seconds
    lease = Lease(
        f"{run.id} node {claimed.node_rank}",
        seconds,
        claimed.claimed_at,
        lambda session: renew_member(session, run.id, run.attempt, worker.worker_id, seconds),
    )
    with worker.leases.hold(lease):
        lease.renew()
        try:
            _NodeExecution(worker, claimed, lease).execute()
        except StaleAttempt as ended:
            logger.info("the node's part has ended: %s", ended, extra={"run_id": run.id})


def report_failure(worker: WorkerContext, run: Run, error: TunesmithError) -> None:
    """Write the worker's own error into its node's row; the leader then ends the attempt."""
    values = {"ended_at": database_now(), "error": _describe(error)}
    with transaction() as session:
        update_member(session, run.id, run.attempt, worker.worker_id, **values)


class _NodeExecution:
    """The part of one node in an attempt, and its state between two polls."""

    def __init__(self, worker: WorkerContext, claimed: ClaimedRun, lease: Lease) -> None:
        self._worker = worker
        self._run = claimed.run
        self._rank = claimed.node_rank
        self._devices = claimed.devices
        self._lease = lease
        self._state: AttemptState | None = None
        self._kill_at: float | None = None
        self._has_reported = False

    def execute(self) -> None:
        """Fetch the inputs, wait for the others, and run the program."""
        try:
            launch = prepare_launch(
                self._run, self._worker.settings, self._devices, self._must_stop, self._rank
            )
        except LaunchError as error:
            if error.code is ErrorCode.artifacts_unreachable:
                self._worker.store_gate.close(error)
            self._report_end(error)
            return
        except LaunchStopped:
            self._report_end(None)
            return
        try:
            place = self._wait_for_place()
            if place is None:
                self._report_end(None)
            else:
                self._run_program(launch.on_node(self._run, self._worker.settings, place))
        finally:
            remove_run_dir(launch.run_dir)

    def _wait_for_place(self) -> NodePlace | None:
        """Wait until all nodes are ready and the leader has named a port; None if the run must stop."""
        is_ready = False
        while not self._must_stop():
            # Without it, all others wait: a database that is away for a moment must not lose it.
            is_ready = is_ready or self._write(ready_at=database_now())
            state, run = self._state, self._run
            if state is not None and state.master_port is not None:
                address = self._worker.node_address
                assert address is not None, "a worker without an address makes no offers"
                meeting = state.master_address, state.master_port
                return NodePlace(self._rank, run.nodes, address, *meeting, f"{run.id}.{run.attempt}")
            time.sleep(POLL_SECONDS)
        return None

    def _run_program(self, launch: Launch) -> None:
        program = start_guarded_process(
            launch.command,
            log=launch.run_dir / files.LOG,
            folder=empty_folder(launch.run_dir),
            environment=launch.environment,
            seconds=self._lease.seconds_left,
            locks=launch.devices.locks,
            limits=launch.limits,
        )
        try:
            self._lease.bind(program)
            while (exit_status := program.wait(POLL_SECONDS)) is None:
                self._handle_stop(program)
                self._report_error(launch)
            error = self._find_error(program, launch, exit_status)
        finally:
            program.kill()
            publish_files(launch.run_dir, self._run, self._rank)
        # Only now: the leader waits for it, and the run has its files when it has ended.
        self._report_end(error)

    def _must_stop(self) -> bool:
        """Return whether the run must stop; raises StaleAttempt if the attempt has ended."""
        if self._lease.lost.is_set():
            raise StaleAttempt(f"this node of {self._run.id} lost its heartbeat")
        run = self._run
        try:
            with read_session() as session:
                self._state = read_attempt(session, run.id, run.attempt, self._worker.settings.lease_seconds)
        except DATABASE_UNAVAILABLE as error:
            # The heartbeat decides how long this may last.
            logger.warning("cannot read the run: %s", describe_error(error), extra={"run_id": run.id})
        if self._state is not None and not self._state.has_valid_lease:
            raise StaleAttempt(f"the leader of {run.id} stopped renewing its lease")
        is_running = self._state is None or self._state.status is RunStatus.running
        return not is_running or self._worker.stopping.is_set()

    def _handle_stop(self, program: GuardedProcess) -> None:
        """Stop the program with the run, or with this worker, of which the leader must know."""
        now, settings = time.monotonic(), self._worker.settings
        if self._must_stop() and self._kill_at is None:
            if self._worker.stopping.is_set():
                self._write(is_stopping=True)
            # A pause lasts as long as the leader allows for the checkpoint. Then the attempt ends, and this
            # program with it.
            self._kill_at = math.inf
            program.stop()
        if self._state is not None and self._state.status is RunStatus.cancelling:
            self._kill_at = min(self._kill_at or math.inf, now + settings.stop_grace_seconds)
        if self._kill_at is not None and now > self._kill_at:
            program.kill()

    def _report_error(self, launch: Launch) -> None:
        """Write an error of a process while others still run: they may be stuck in a driver."""
        if self._has_reported or self._kill_at is not None:
            return
        error = results.read_error(launch.run_dir)
        if error is not None:
            self._has_reported = self._write(error=_describe(error))

    def _find_error(self, program: GuardedProcess, launch: Launch, exit_status: int) -> TunesmithError | None:
        """Return why the program failed; None if it ended in order or was asked to stop."""
        if exit_status == 0:
            return None
        reported = results.read_error(launch.run_dir)
        if self._kill_at is not None:
            return reported
        if program.exceeded_limit is not None:
            return explain_limit(self._run, launch.config, program.exceeded_limit)
        return results.infer_error(self._run, launch, exit_status, reported)

    def _report_end(self, error: TunesmithError | None) -> None:
        """Write the end of this node's part, and wait for a database that is unavailable."""
        values: dict[str, Any] = {"ended_at": database_now()}
        if self._worker.stopping.is_set():
            values["is_stopping"] = True
        if error is not None:
            values["error"] = _describe(error)
        while not self._write(**values) and not self._lease.lost.wait(POLL_SECONDS):
            pass

    def _write(self, **values: Any) -> bool:
        """Write into this node's row; return False if the database is unavailable."""
        run = self._run
        try:
            with transaction() as session:
                update_member(session, run.id, run.attempt, self._worker.worker_id, **values)
        except DATABASE_UNAVAILABLE as error:
            logger.warning(
                "cannot write to the database: %s", describe_error(error), extra={"run_id": run.id}
            )
            return False
        return True


def _describe(error: TunesmithError) -> dict[str, Any]:
    return error.as_dict() | {"time": time_of(error)}
