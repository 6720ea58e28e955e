"""Execution of one run: launch, follow, complete. No session is open while its program works."""

import contextlib
import logging
import time
from dataclasses import replace

from sqlmodel import col, select

from app.runs import lifecycle
from app.runs.attempt_outcome import AttemptOutcome
from app.runs.lifecycle import StaleAttempt
from app.scheduling.incidents import describe_error
from app.storage.database import DATABASE_UNAVAILABLE, read_session, transaction
from app.tables import Run, RunStatus
from trainers.configs import BatchConfig, EngineClientConfig, RecordConfig, StageKind
from trainers.evaluation.checkpoints import publish_unsaved
from trainers.rendering.template_renderer import ChatTemplateError
from trainers.runtime import run_dir as files
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import EngineFailed, TunesmithError
from workers.batches.follower import BatchFollower
from workers.hosts.devices import Devices
from workers.hosts.environments import empty_folder
from workers.hosts.guarded_process import GuardedProcess, start_guarded_process
from workers.hosts.lease import Lease
from workers.hosts.resource_limits import ExceededLimit
from workers.hosts.worker import WorkerContext
from workers.inputs.errors import LaunchError, LaunchStopped
from workers.inputs.served_models import DeploymentUse
from workers.nodes.leader import GroupLeader, NodeLost, NodesDidNotMeet
from workers.nodes.member import execute_member, report_failure
from workers.outputs.token_use import TokenUseFollower
from workers.promotions.stage import run_promote_stage
from workers.reuse.equal_run import reuse_output
from workers.runs import complete, deploy_stage
from workers.runs.checkpoints import CheckpointUploads, estimate_checkpoint_bytes, estimate_save_seconds
from workers.runs.claim import ClaimedRun
from workers.runs.complete import RunAttempt
from workers.runs.follow import RunDirChanges, RunDirFollower
from workers.runs.launch import Launch, prepare_launch, remove_run_dir
from workers.runs.results import ReportedError
from workers.runs.run_engine import ModelGroup, RunEngine, find_incomplete_models, group_models

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
# Ranks end by themselves seconds after one has failed, unless they are stuck in a driver.
FAILED_RANK_SECONDS = 60.0


class WorkerFailed(TunesmithError):
    code = ErrorCode.worker_failed


def execute(worker: WorkerContext, claimed: ClaimedRun) -> None:
    """Execute a claimed run until its attempt has ended, and release its devices."""
    run = claimed.run
    try:
        _execute(worker, claimed)
    except StaleAttempt as stale:
        logger.warning("another attempt holds the run: %s", stale, extra={"run_id": run.id})
    except Exception as error:
        logger.exception("the worker failed", extra={"run_id": run.id})
        message = f"The worker raised {type(error).__name__} while it executed {run.id}."
        failed = WorkerFailed(message, "The worker's own log contains the traceback.")
        # Otherwise the sweeper ends the attempt, but only once its lease has ended.
        with contextlib.suppress(*DATABASE_UNAVAILABLE):
            if claimed.node_rank:
                report_failure(worker, run, failed)
            else:
                _end_in_transaction(worker, run, AttemptOutcome(failed))
    finally:
        worker.release_devices(claimed.devices)


def _execute(worker: WorkerContext, claimed: ClaimedRun) -> None:
    if claimed.node_rank:
        execute_member(worker, claimed)
        return
    run, seconds = claimed.run, worker.settings.lease_seconds
    lease = Lease(
        run.id, seconds, claimed.claimed_at, lambda s: lifecycle.renew(s, run.id, run.attempt, seconds)
    )
    with worker.leases.hold(lease):
        if run.stage is StageKind.deploy:
            deploy_stage.run_deploy_stage(worker, run, lease)
        elif run.stage is StageKind.promote:
            run_promote_stage(worker, run, lease)
        else:
            _RunExecution(worker, run, lease).execute(claimed.devices)


def _end_in_transaction(worker: WorkerContext, run: Run, end: AttemptOutcome) -> None:
    with transaction() as session:
        guards = lifecycle.lease_guards(run.attempt)
        lifecycle.end_attempt(session, run.id, end, guards, worker.settings.max_failures)


class _RunExecution:
    """One attempt at a run, and its state between two polls."""

    def __init__(self, worker: WorkerContext, run: Run, lease: Lease) -> None:
        self.worker = worker
        self.run = run
        self.lease = lease
        self.settings = worker.settings
        self.status = RunStatus.running
        self.kill_at: float | None = None
        """When a program that was asked to stop is killed."""
        self.checkpoint_bytes = 0.0
        """The expected size of the first checkpoint."""
        self.unsaved = RunDirChanges()
        self.batch: BatchFollower | None = None
        self.group = GroupLeader(run, worker) if run.nodes > 1 else None

    def execute(self, devices: Devices) -> None:
        """Run the attempt from its inputs to its end."""
        try:
            launch = prepare_launch(self.run, self.settings, devices, self._must_stop)
        except LaunchError as error:
            complete.end_attempt(self._attempt(), error)
            return
        except LaunchStopped:
            complete.end_attempt(replace(self._attempt(), stop_requested=True), None)
            return
        inputs, is_reused = reuse_output(self.run, launch, self.settings)
        self.unsaved.values |= inputs
        if is_reused:
            self.lease.end()
            remove_run_dir(launch.run_dir)
            return
        self.uploads = CheckpointUploads(self.run, launch.run_dir)
        base = launch.base.base if launch.base is not None else None
        self.checkpoint_bytes = estimate_checkpoint_bytes(launch.run_dir, launch.config, base)
        self.tokens = TokenUseFollower(self.run, launch.run_dir)
        if isinstance(launch.config, BatchConfig) and launch.config.batch is not None:
            self.batch = BatchFollower(launch.config.batch, launch.run_dir)
        self.worker.tracker.begin_attempt(self.run, launch.run_dir)
        try:
            if isinstance(launch.config, EngineClientConfig):
                self._run_with_engines(launch, launch.config, devices)
            else:
                # Created before the program starts: a checkpoint to resume from is not new.
                follower = RunDirFollower(launch.run_dir, self.run.metrics)
                if self.group is None:
                    self._run_program(launch, follower)
                else:
                    self._run_on_nodes(launch, follower, self.group)
            self.lease.end()
            self.worker.tracker.end_attempt(self.run, launch.run_dir)
        except BaseException:
            self.worker.tracker.discard_attempt(self.run)
            raise
        finally:
            self.uploads.close()
            remove_run_dir(launch.run_dir)

    def _run_on_nodes(self, launch: Launch, follower: RunDirFollower, group: GroupLeader) -> None:
        """Run the program once the other hosts are ready."""
        try:
            launch = group.meet(launch, self._must_stop)
        except LaunchStopped:
            complete.end_attempt(replace(self._attempt(), stop_requested=True), None)
        except (NodeLost, NodesDidNotMeet, ReportedError) as error:
            complete.end_attempt(self._attempt(), error)
        else:
            self._run_program(launch, follower)
        finally:
            group.close()

    def _run_with_engines(self, launch: Launch, config: EngineClientConfig, devices: Devices) -> None:
        """Run the program once for each engine that it needs; the last time, it completes its work."""
        follower = RunDirFollower(launch.run_dir, self.run.metrics)
        incomplete = find_incomplete_models(config, launch.run_dir)
        groups = group_models(config, {role: config.engine_models[role] for role in incomplete})
        for position, group in enumerate(groups):
            later = [role for other in groups[position + 1 :] for role in other.names]
            if not self._run_with_engine(launch, config, group, later, devices, follower):
                return
        if not groups:
            self._run_program(launch, follower)

    def _run_with_engine(
        self,
        launch: Launch,
        config: EngineClientConfig,
        group: ModelGroup,
        later: list[str],
        devices: Devices,
        follower: RunDirFollower,
    ) -> bool:
        """Run the program with one engine; return whether the attempt continues with the next engine."""
        engine = RunEngine(config, group, launch.run_dir, self.worker)
        try:
            if engine.start(devices, self.lease, self._poll_stop):
                with_engine = launch.with_engines(engine.describe(devices), later)
                return self._run_program(with_engine, follower, engine, has_more=bool(later))
            engine.stop()
            complete.end_attempt(self._attempt(), None)
        except (EngineFailed, ChatTemplateError) as error:
            engine.stop()
            complete.publish_files(launch.run_dir, self.run)
            complete.end_attempt(self._attempt(), error)
        finally:
            engine.kill()
        return False

    def _must_stop(self) -> bool:
        """Return whether the run must stop while its inputs are being downloaded."""
        self._check_lease()
        with contextlib.suppress(*DATABASE_UNAVAILABLE):
            self.status = self._read_status()
        return self.status is not RunStatus.running or self.worker.stopping.is_set()

    def _poll_stop(self, process: GuardedProcess) -> bool:
        """Return whether the run must stop, before its program has started."""
        self._check_lease()
        self._save(RunDirChanges())
        self._handle_stop(process)
        return self.kill_at is not None

    def _run_program(
        self,
        launch: Launch,
        follower: RunDirFollower,
        engine: RunEngine | None = None,
        *,
        has_more: bool = False,
    ) -> bool:
        """Run the program and end the attempt; return True instead if it has more to do, and did this."""
        program = start_guarded_process(
            launch.command,
            log=launch.run_dir / files.LOG,
            folder=empty_folder(launch.run_dir),
            environment=launch.environment,
            seconds=self.lease.seconds_left,
            locks=launch.devices.locks,
            limits=launch.limits,
            fork_server=self.worker.fork_server,
        )
        try:
            self.lease.bind(program)
            exit_status = self._watch(program, launch, follower)
            if engine is not None:
                # Its devices must be free before the run's status lets another one start.
                engine.stop()
            if has_more and exit_status == 0 and self.kill_at is None:
                return True
            complete.complete_attempt(self._attempt(program.exceeded_limit), launch, exit_status)
        finally:
            program.kill()
        return False

    def _attempt(self, exceeded: ExceededLimit | None = None) -> RunAttempt:
        gate = self.worker.store_gate
        is_stopping = self.kill_at is not None
        return RunAttempt(
            self.run,
            self.settings,
            self.lease,
            is_stopping,
            exceeded,
            gate,
            self.group,
            self.checkpoint_bytes,
        )

    def _check_lease(self) -> None:
        if self.lease.lost.is_set():
            raise StaleAttempt(f"attempt {self.run.attempt} of {self.run.id} lost its lease")

    def _watch(self, program: GuardedProcess, launch: Launch, follower: RunDirFollower) -> int:
        """Save the program's progress and pass on requests to stop, until it ends; return its exit status."""
        use = DeploymentUse(launch.config)
        while (exit_status := program.wait(POLL_SECONDS)) is None:
            self._check_lease()
            self._save(follower.poll())
            use.poll()
            self._handle_stop(program, follower.save_seconds or estimate_save_seconds(self.checkpoint_bytes))
            self._handle_failed_rank(program, follower)
            if self.group is not None:
                self.group.poll()
                if self.group.must_kill:
                    program.kill()
        config = launch.config
        has_result = (launch.run_dir / files.RESULT).exists()
        if isinstance(config, EngineClientConfig | BatchConfig | RecordConfig) and not has_result:
            # The next attempt may be on another host, and must not generate these again.
            for completions in launch.run_dir.glob(config.completions_file):
                publish_unsaved(completions)
        self._save(follower.poll(to_end=True), wait=True)
        while self.unsaved.events or self.uploads.pending or self._has_unsaved_use():
            self.lease.lost.wait(POLL_SECONDS)
            self._check_lease()
            self._save(RunDirChanges(), wait=True)
        return exit_status

    def _save(self, changes: RunDirChanges, *, wait: bool = False) -> None:
        """Write the changes, and read the status; without a database, keep them for the next poll."""
        for checkpoint in changes.checkpoints:
            self.uploads.add(checkpoint)
        self.unsaved.add(changes)
        if self.batch is not None:
            self.batch.poll()
        self.tokens.poll()
        try:
            self.uploads.record_stored(self.unsaved.events, wait=wait)
            if self.unsaved.events or self.unsaved.values or self._has_unsaved_use():
                with transaction() as session:
                    self.status = lifecycle.append_events(
                        session, self.run.id, self.run.attempt, self.unsaved.events, self.unsaved.values
                    )
                    if self.batch is not None:
                        self.batch.save(session)
                    self.tokens.save(session)
                self.unsaved = RunDirChanges()
                if self.batch is not None:
                    self.batch.mark_saved()
                self.tokens.mark_saved()
            else:
                self.status = self._read_status()
        except DATABASE_UNAVAILABLE as error:
            logger.warning(
                "cannot write to the database: %s", describe_error(error), extra={"run_id": self.run.id}
            )

    def _has_unsaved_use(self) -> bool:
        return self.tokens.has_unsaved or (self.batch is not None and self.batch.has_unsaved)

    def _read_status(self) -> RunStatus:
        with read_session() as session:
            status, attempt = session.exec(
                select(col(Run.status), col(Run.attempt)).where(col(Run.id) == self.run.id)
            ).one()
        if attempt != self.run.attempt or not status.held:
            raise StaleAttempt(f"{self.run.id} is {status} at attempt {attempt}, not {self.run.attempt}")
        return status

    def _handle_stop(self, process: GuardedProcess, save_seconds: float = 0.0) -> None:
        """Stop the process when the run is cancelled or paused, or when this worker is shutting down.

        `save_seconds` is how long its largest checkpoint took, or may take if it has saved none.
        """
        now = time.monotonic()
        is_leaving = self.worker.stopping.is_set() or (self.group is not None and self.group.is_stopping)
        if self.kill_at is None and (self.status is not RunStatus.running or is_leaving):
            is_cancelled = self.status is RunStatus.cancelling
            # A checkpoint of large weights takes minutes; the disk may be slower now than it was.
            pause_seconds = max(self.settings.pause_grace_seconds, 2 * save_seconds)
            self.kill_at = now + (self.settings.stop_grace_seconds if is_cancelled else pause_seconds)
            process.stop()
        elif self.status is RunStatus.cancelling and self.kill_at is not None:
            # A run that was being paused is cancelled: it no longer gets the time to save a checkpoint.
            self.kill_at = min(self.kill_at, now + self.settings.stop_grace_seconds)
        if self.kill_at is not None and now > self.kill_at:
            logger.warning("the program did not stop in time and is killed", extra={"run_id": self.run.id})
            process.kill()

    def _handle_failed_rank(self, program: GuardedProcess, follower: RunDirFollower) -> None:
        """Kill a program that still runs long after one of its ranks has failed: it holds its devices."""
        if follower.seconds_since_error > FAILED_RANK_SECONDS:
            logger.warning("the other ranks did not end and are killed", extra={"run_id": self.run.id})
            program.kill()
