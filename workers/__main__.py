"""Serve queues on this host until told to stop.

python -m workers --queue cpu --queue cuda --name mac-studio
"""

import argparse
import logging
import os
import signal
import sys
import threading
import time
import warnings
from types import FrameType

from celery import signals
from celery.apps.worker import Worker as CeleryWorker
from celery.platforms import SecurityWarning

from app import logs
from app.scheduling.queue import get_celery
from app.scheduling.sweeper import Sweeper
from app.settings import Settings, get_settings
from app.storage import migrate
from app.storage.database import get_engine
from trainers.configs import Queue
from workers import tasks
from workers.engines.deployment_manager import DeploymentManager
from workers.hosts.worker import WorkerContext, register_worker
from workers.runs import recovery
from workers.tracking.services import explain_missing_packages

EARLY_SIGNAL_SECONDS = 0.05

logger = logging.getLogger("workers")


def main() -> int:
    """Run one worker."""
    arguments = _arguments()
    settings = get_settings()
    logs.configure_logging(settings.log_level)
    if (missing := explain_missing_packages(settings)) is not None:
        raise SystemExit(missing)
    _require_schema()
    _keep_early_signals()
    host = register_worker(settings, arguments.queue, arguments.name)
    logger.info("joined", extra={"worker_id": host.worker_id, "queues": host.queues, "stages": host.stages})
    if arguments.exit_with_stdin:
        threading.Thread(target=_exit_with_stdin, name="stdin", daemon=True).start()
    was_told_to_stop = _serve(host, settings)
    host.leave()
    return 0 if was_told_to_stop else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m workers", description="Serve queues on this host.")
    parser.add_argument(
        "--queue",
        type=Queue,
        action="append",
        required=True,
        choices=list(Queue),
        help="may be given more than once",
    )
    parser.add_argument("--name", help="how the worker is listed; the host's name and process id by default")
    parser.add_argument(
        "--exit-with-stdin",
        action="store_true",
        help="stop when standard input closes, as a child of another process",
    )
    return parser.parse_args()


def _require_schema() -> None:
    """Whoever comes first brings an embedded database up to date; a team's is migrated on purpose."""
    engine = get_engine()
    if engine.dialect.name == "sqlite":
        migrate.upgrade_database(engine)
    current, head = migrate.get_revisions(engine)
    if current != head:
        raise SystemExit(f"The database is at {current}, not {head}: run `python -m app migrate` first.")


def _keep_early_signals() -> None:
    """Celery listens for signals once it has started; one that comes before is handed to it then."""

    def told(number: int, frame: FrameType | None) -> None:
        threading.Thread(target=hand_over, args=(number,), name="early signal", daemon=True).start()

    def hand_over(number: int) -> None:
        while signal.getsignal(number) is told:
            time.sleep(EARLY_SIGNAL_SECONDS)
        os.kill(os.getpid(), number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, told)


def _serve(host: WorkerContext, settings: Settings) -> bool:
    """Work until the end; False when Celery gave up by itself, which whoever started it must see."""
    celery = get_celery()
    tasks.register_task(celery, host)
    sweeper = Sweeper(settings, after_sweep=lambda: recovery.release_disk_waits(host))
    pool = threading.Thread(target=DeploymentManager(host).run, name="deployments")
    host.leases.start()
    host.tracker.start()
    sweeper.start()
    pool.start()
    # Celery's own word that it stops: runs and engines are told at once, so that they save and leave.
    signals.worker_shutting_down.connect(lambda **_: host.stopping.set(), weak=False)
    # Celery warns of root because of pickle, which we do not accept.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    # One thread: a run is carried out in it, while the main thread keeps listening.
    CeleryWorker(
        app=celery,
        hostname=f"{host.worker_id}@{os.uname().nodename}",
        queues=[queue.value for queue in host.queues],
        pool="threads",
        concurrency=1,
        loglevel=settings.log_level,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    ).start()
    was_told_to_stop = host.stopping.is_set()
    host.stopping.set()
    pool.join()
    host.tracker.stop()
    sweeper.stop()
    host.leases.stop()
    return was_told_to_stop


def _exit_with_stdin() -> None:
    """End as after SIGTERM once whoever started this worker is gone."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
