"""Carries out one run: claim, launch, follow. No session is open while its program works."""

import contextlib
import logging
import shutil
import time

from sqlalchemy.exc import OperationalError
from sqlmodel import Session, col, select

from app.runs import lifecycle
from app.runs.lifecycle import NewEvent, StaleAttempt
from app.scheduling.queue import notify_after_commit
from app.scheduling.sweeper import list_idle_queues
from app.storage.artifacts import PublishedArtifact, get_store
from app.storage.database import read_session, transaction
from app.tables import Checkpoint, EventType, Run, RunStatus
from trainers.configs import StageKind
from trainers.runtime import run_dir as files
from trainers.runtime.error_codes import ErrorCode
from workers.hosts import guarded_process
from workers.hosts.guarded_process import GuardedProcess
from workers.hosts.lease import Lease
from workers.hosts.worker import WorkerContext
from workers.runs import complete, deploy_stage
from workers.runs.checkpoints import CheckpointUploads
from workers.runs.complete import RunAttempt
from workers.runs.follow import RunDirChanges, RunDirFollower
from workers.runs.launch import LaunchError, prepare_launch

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0


def execute_next(host: WorkerContext) -> bool:
    """Carry out the first run that this worker can take; False when there is none for it."""
    asked_at = time.monotonic()
    with transaction() as session:
        run = _claim(session, host)
        if run is not None:
            _wake_others(session, host)
    if run is None:
        return False
    logger.info("claimed", extra={"run_id": run.id, "attempt": run.attempt, "stage": run.stage})
    # The engine that a `deploy` stage asks for takes devices of its own.
    gpus = [] if run.stage is StageKind.deploy else host.devices.take(run.queue, run.device_count)
    try:
        _carry_out(host, run, gpus, asked_at)
    except StaleAttempt as stale:
        logger.warning("left to another worker: %s", stale, extra={"run_id": run.id})
    except Exception as error:
        logger.exception("the worker failed", extra={"run_id": run.id})
        _give_up(host, run, error)
    finally:
        host.devices.give_back(gpus or [])
    return True


def _claim(session: Session, host: WorkerContext) -> Run | None:
    """A run whose queue has a free device, or a `deploy` stage, which may be what frees one."""
    seconds = host.settings.lease_seconds
    deploys = [stage for stage in host.stages if stage is StageKind.deploy]
    queues = host.devices.free(host.queues)
    free = host.devices.free_gpus
    return lifecycle.claim(session, host.worker_id, queues, host.stages, seconds, free) or lifecycle.claim(
        session, host.worker_id, host.queues, deploys, seconds
    )


def _wake_others(session: Session, host: WorkerContext) -> None:
    """Of bells that were lost, one that is left wakes all idle workers in turn."""
    for queue in list_idle_queues(session, host.settings):
        if session.scalar(lifecycle.select_claimable([queue]).limit(1)) is not None:
            notify_after_commit(session, queue)


def _give_up(host: WorkerContext, run: Run, error: Exception) -> None:
    """Say at once what another would find out when the lease ends."""
    message = f"The worker failed while it carried out {run.id}: {type(error).__name__}."
    told = {
        "code": ErrorCode.internal_error,
        "message": message,
        "hint": "The worker's own log holds the traceback.",
    }
    with transaction() as session:
        current = session.get_one(Run, run.id)
        lifecycle.give_up(
            session, current, told, lifecycle.lease_guards(run.attempt), host.settings.max_failures
        )


def _carry_out(host: WorkerContext, run: Run, gpus: list[int] | None, asked_at: float) -> None:
    seconds = host.settings.lease_seconds
    lease = Lease(run.id, seconds, asked_at, lambda s: lifecycle.renew(s, run.id, run.attempt, seconds))
    with host.leases.hold(lease):
        if gpus is None:
            _put_back(run)
        elif run.stage is StageKind.deploy:
            deploy_stage.run_deploy_stage(host, run, lease)
        else:
            _Execution(host, run, lease).carry_out(gpus)


def _put_back(run: Run) -> None:
    """An engine took the device between the look and the claim: the run waits for the next bell."""
    with transaction() as session:
        lifecycle.move(session, run.id, RunStatus.queued, guards=lifecycle.lease_guards(run.attempt))


class _Execution:
    """One attempt at a run: what is known of it between one look and the next."""

    def __init__(self, host: WorkerContext, run: Run, lease: Lease) -> None:
        self.host = host
        self.run = run
        self.lease = lease
        self.settings = host.settings
        self.status = RunStatus.running
        self.kill_at: float | None = None
        self.untold = RunDirChanges()

    def carry_out(self, gpus: list[int]) -> None:
        try:
            launch = prepare_launch(self.run, self.settings, gpus)
        except LaunchError as refused:
            complete.end_attempt(self._attempt(), refused.as_dict())
            return
        self.uploads = CheckpointUploads(self.run, launch.run_dir)
        follower = RunDirFollower(launch.run_dir)
        self.host.tracker.begin_attempt(self.run, launch.run_dir)
        child = guarded_process.start_guarded_process(
            launch.command,
            log=launch.run_dir / files.LOG,
            environment=launch.environment,
            seconds=self.lease.seconds_left,
        )
        try:
            self.lease.bind(child)
            exit_status = self._watch(child, follower)
            complete.complete_attempt(self._attempt(), launch, exit_status)
            self.lease.end()
            self.host.tracker.end_attempt(self.run, launch.run_dir)
        except BaseException:
            self.host.tracker.discard_attempt(self.run)
            raise
        finally:
            child.kill()
            self.uploads.close()
            shutil.rmtree(launch.run_dir, ignore_errors=True)
            # Another attempt's directory may stand beside it, when workers share a data directory.
            with contextlib.suppress(OSError):
                launch.run_dir.parent.rmdir()

    def _attempt(self) -> RunAttempt:
        return RunAttempt(self.run, self.settings, self.lease, stop_asked=self.kill_at is not None)

    def _watch(self, child: GuardedProcess, follower: RunDirFollower) -> int:
        """Tell SQL what the program does and the program what SQL wants, until it ends."""
        while (exit_status := child.wait(LOOK_SECONDS)) is None:
            if self.lease.lost.is_set():
                raise StaleAttempt(f"attempt {self.run.attempt} of {self.run.id} lost its lease")
            self._tell(follower.look())
            self._heed(child)
        self._tell(follower.look(to_end=True), wait=True)
        while self.untold.facts or self.uploads.pending:
            if self.lease.lost.wait(LOOK_SECONDS):
                raise StaleAttempt(f"attempt {self.run.attempt} lost {self.run.id} while it waited")
            self._tell(RunDirChanges(), wait=True)
        return exit_status

    def _tell(self, news: RunDirChanges, *, wait: bool = False) -> None:
        """Write what is new; while the database is out of reach it is kept for the next look."""
        for checkpoint in news.checkpoints:
            self.uploads.add(checkpoint)
        self.untold.add(news)
        try:
            self._write_checkpoints(wait=wait)
            if self.untold.facts or self.untold.values:
                with transaction() as session:
                    self.status = lifecycle.append_events(
                        session, self.run.id, self.run.attempt, self.untold.facts, self.untold.values
                    )
                self.untold = RunDirChanges()
            else:
                self.status = self._read_status()
        except OperationalError as error:
            logger.warning("cannot write to the database: %s", error.orig, extra={"run_id": self.run.id})

    def _read_status(self) -> RunStatus:
        with read_session() as session:
            status, attempt = session.exec(
                select(col(Run.status), col(Run.attempt)).where(col(Run.id) == self.run.id)
            ).one()
        if attempt != self.run.attempt or not status.held:
            raise StaleAttempt(f"{self.run.id} is {status} at attempt {attempt}, not {self.run.attempt}")
        return status

    def _heed(self, child: GuardedProcess) -> None:
        """Stop the program once it is cancelled, paused, or this worker is to leave."""
        now = time.monotonic()
        if self.kill_at is None and (self.status is not RunStatus.running or self.host.stopping.is_set()):
            cancelled = self.status is RunStatus.cancelling
            grace = self.settings.stop_grace_seconds if cancelled else self.settings.pause_grace_seconds
            self.kill_at = now + grace
            child.stop()
        elif self.status is RunStatus.cancelling and self.kill_at is not None:
            # A run that was saving itself to pause is cancelled: it may not take that long now.
            self.kill_at = min(self.kill_at, now + self.settings.stop_grace_seconds)
        if self.kill_at is not None and now > self.kill_at:
            logger.warning("did not stop in time: killed", extra={"run_id": self.run.id})
            child.kill()

    def _write_checkpoints(self, *, wait: bool) -> None:
        for upload in list(self.uploads.pending):
            if not wait and not upload.stored.done():
                return
            try:
                published = upload.stored.result()
            except OSError as error:
                self._warn_unstored(error)
                published = None
            if published is not None:
                self._write_checkpoint(upload.checkpoint, published)
            self.uploads.remove(upload)

    def _warn_unstored(self, error: OSError) -> None:
        """A checkpoint that cannot be stored costs work after a crash, but it does not end the run."""
        message = f"A checkpoint could not be stored: {error}. The run goes on without it."
        data = {"code": ErrorCode.artifacts_unreachable, "message": message}
        self.untold.facts.append(NewEvent(EventType.warning, data))

    def _write_checkpoint(self, checkpoint: files.CheckpointRecord, published: PublishedArtifact) -> None:
        with transaction() as session:
            data = {"step": checkpoint.step, "size_bytes": published.size_bytes}
            fact = NewEvent(EventType.checkpoint, data, checkpoint.step)
            # What was saved is safe from the next fault: the cap counts faults without progress.
            lifecycle.append_events(session, self.run.id, self.run.attempt, [fact], {"failure_count": 0})
            session.add(
                Checkpoint(
                    run_id=self.run.id,
                    attempt=self.run.attempt,
                    step=checkpoint.step,
                    artifact=published.key,
                    sha256=published.sha256,
                    size_bytes=published.size_bytes,
                )
            )
            superseded = _superseded(session, self.run)
        for artifact in superseded:
            try:
                get_store().delete(artifact)
            except OSError as error:
                logger.warning("could not remove %s: %s", artifact, error, extra={"run_id": self.run.id})


def _superseded(session: Session, run: Run) -> list[str]:
    """Forget all but the newest checkpoints, as many as the run keeps; answers their artifacts."""
    keep = run.config.get("keep_checkpoints", 1)
    newest = select(Checkpoint).where(col(Checkpoint.run_id) == run.id)
    newest = newest.order_by(col(Checkpoint.step).desc(), col(Checkpoint.attempt).desc())
    old = session.exec(newest.offset(keep)).all()
    for checkpoint in old:
        session.delete(checkpoint)
    return [checkpoint.artifact for checkpoint in old]
