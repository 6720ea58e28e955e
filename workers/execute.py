"""Carries out one run: claim, launch, follow. No session is open while its program works."""

import logging
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from sqlalchemy.exc import OperationalError
from sqlmodel import Session, col, select

from app.artifacts import Published, get_store
from app.db import reading, transaction
from app.errors import RunErrorCode
from app.queue import ring_after_commit
from app.runs import lifecycle
from app.runs.lifecycle import Fact, StaleAttempt
from app.tables import Checkpoint, EventType, Run, RunStatus
from trainers import run_dir as files
from trainers.configs import StageKind
from workers import deploy, finish, process
from workers.finish import Attempt
from workers.follow import Follower, News
from workers.host import Host
from workers.launch import LaunchError, prepare
from workers.lease import Lease
from workers.process import Child

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0


def execute_next(host: Host) -> bool:
    """Carry out the first run that this worker can take; False when there is none for it."""
    queues = host.devices.free(host.queues)
    with transaction() as session:
        run = lifecycle.claim(session, host.worker_id, queues, host.stages, host.settings.lease_seconds)
        if run is not None and session.scalar(lifecycle.claimable([run.queue]).limit(1)) is not None:
            # One bell starts one run: of bells that were lost, one that is left wakes all workers in turn.
            ring_after_commit(session, run.queue)
    if run is None:
        return False
    logger.info("claimed", extra={"run_id": run.id, "attempt": run.attempt, "stage": run.stage})
    gpus = host.devices.take(run.queue)
    try:
        _carry_out(host, run, gpus)
    except StaleAttempt as stale:
        logger.warning("left to another worker: %s", stale, extra={"run_id": run.id})
    finally:
        host.devices.give_back(gpus or [])
    return True


def _carry_out(host: Host, run: Run, gpus: list[int] | None) -> None:
    lease_seconds = host.settings.lease_seconds
    lease = Lease(run.id, lease_seconds, lambda s: lifecycle.renew(s, run.id, run.attempt, lease_seconds))
    with host.leases.hold(lease):
        if gpus is None:
            _put_back(run)
        elif run.stage is StageKind.deploy:
            deploy.carry_out(host, run, lease)
        else:
            _Execution(host, run, lease).carry_out(gpus)


def _put_back(run: Run) -> None:
    """An engine took the device between the look and the claim: the run waits for the next bell."""
    with transaction() as session:
        lifecycle.move(session, run.id, RunStatus.queued, guards=lifecycle.held_by(run.attempt))


class _Execution:
    """One attempt at a run: what is known of it between one look and the next."""

    def __init__(self, host: Host, run: Run, lease: Lease) -> None:
        self.host = host
        self.run = run
        self.lease = lease
        self.settings = host.settings
        self.status = RunStatus.running
        self.kill_at: float | None = None
        self.untold = News()
        # Hashing and copying a large checkpoint must not keep a cancel waiting.
        self.uploads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="upload")
        self.uploading: list[Future[tuple[files.Checkpoint, Published] | None]] = []

    def carry_out(self, gpus: list[int]) -> None:
        try:
            launch = prepare(self.run, self.settings, gpus)
        except LaunchError as refused:
            attempt = Attempt(self.run, self.settings, self.lease, self.status, stop_asked=False)
            finish.end_with_error(attempt, refused.error)
            return
        follower = Follower(launch.run_dir)
        child = process.start(
            launch.command,
            log=launch.run_dir / files.LOG,
            environment=launch.environment,
            seconds=self.lease.seconds_left,
        )
        try:
            self.lease.bind(child)
            exit_status = self._watch(child, follower, launch.run_dir)
            finish.finish(
                Attempt(self.run, self.settings, self.lease, self.status, self.kill_at is not None),
                launch,
                exit_status,
            )
        finally:
            child.kill()
            self.uploads.shutdown()
            shutil.rmtree(launch.run_dir.parent, ignore_errors=True)

    def _watch(self, child: Child, follower: Follower, run_dir: Path) -> int:
        """Tell SQL what the program does and the program what SQL wants, until it ends."""
        while (exit_status := child.wait(LOOK_SECONDS)) is None:
            if self.lease.lost.is_set():
                raise StaleAttempt(f"attempt {self.run.attempt} of {self.run.id} lost its lease")
            self._tell(follower.look(), run_dir)
            self._heed(child)
        self._tell(follower.look(to_end=True), run_dir, wait=True)
        return exit_status

    def _tell(self, news: News, run_dir: Path, *, wait: bool = False) -> None:
        """Write what is new; while the database is out of reach it is kept for the next look."""
        for checkpoint in news.checkpoints:
            self.uploading.append(self.uploads.submit(self._upload, checkpoint, run_dir))
        self.untold.add(news)
        try:
            self._write_checkpoints(wait=wait)
            if self.untold.facts or self.untold.values:
                with transaction() as session:
                    self.status = lifecycle.record(
                        session, self.run.id, self.run.attempt, self.untold.facts, self.untold.values
                    )
                self.untold = News()
            else:
                self.status = self._read_status()
        except OperationalError as error:
            logger.warning("cannot write to the database: %s", error.orig, extra={"run_id": self.run.id})

    def _read_status(self) -> RunStatus:
        with reading() as session:
            status, attempt = session.exec(
                select(col(Run.status), col(Run.attempt)).where(col(Run.id) == self.run.id)
            ).one()
        if attempt != self.run.attempt or not status.held:
            raise StaleAttempt(f"{self.run.id} is {status} at attempt {attempt}, not {self.run.attempt}")
        return status

    def _heed(self, child: Child) -> None:
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

    def _upload(
        self, checkpoint: files.Checkpoint, run_dir: Path
    ) -> tuple[files.Checkpoint, Published] | None:
        key = f"checkpoints/{self.run.id}/{self.run.attempt}-{checkpoint.step:08d}"
        try:
            return checkpoint, get_store().publish_folder(run_dir / checkpoint.path, key)
        except FileNotFoundError:
            # The program has pruned it, as it does when newer ones are complete.
            return None

    def _write_checkpoints(self, *, wait: bool) -> None:
        while self.uploading and (wait or self.uploading[0].done()):
            uploaded = self._uploaded(self.uploading[0])
            if uploaded is not None:
                self._write_checkpoint(*uploaded)
            self.uploading.pop(0)

    def _uploaded(
        self, upload: "Future[tuple[files.Checkpoint, Published] | None]"
    ) -> tuple[files.Checkpoint, Published] | None:
        """A checkpoint that cannot be stored costs work after a crash, but it does not end the run."""
        try:
            return upload.result()
        except OSError as error:
            message = f"A checkpoint could not be stored: {error}. The run goes on without it."
            data = {"code": RunErrorCode.artifacts_unreachable, "message": message}
            self.untold.facts.append(Fact(EventType.warning, data))
            return None

    def _write_checkpoint(self, checkpoint: files.Checkpoint, published: Published) -> None:
        with transaction() as session:
            data = {"step": checkpoint.step, "size_bytes": published.size_bytes}
            fact = Fact(EventType.checkpoint, data, checkpoint.step)
            lifecycle.record(session, self.run.id, self.run.attempt, [fact])
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
            get_store().delete(artifact)


def _superseded(session: Session, run: Run) -> list[str]:
    """Forget all but the newest checkpoints, as many as the run keeps; answers their artifacts."""
    keep = run.config.get("keep_checkpoints", 1)
    newest = select(Checkpoint).where(col(Checkpoint.run_id) == run.id)
    newest = newest.order_by(col(Checkpoint.step).desc(), col(Checkpoint.attempt).desc())
    old = session.exec(newest.offset(keep)).all()
    for checkpoint in old:
        session.delete(checkpoint)
    return [checkpoint.artifact for checkpoint in old]
