"""A worker: serves queues on this host until it is stopped.

python -m workers
python -m workers --queue cpu --queue mlx --name mac-studio
python -m workers doctor
python -m workers join --url https://control.example:8000 --key ts_…
python -m workers leave
"""

import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from celery import Celery, signals
from celery.apps.worker import Worker as CeleryWorker
from celery.platforms import SecurityWarning

from app import logs
from app.retention.collector import Collector
from app.scheduling.incidents import describe_error, report_thread_deaths
from app.scheduling.periodic import PeriodicThread
from app.scheduling.queue import get_celery
from app.scheduling.startup import load_settings, prepare_or_exit, prepare_store, prepare_worker
from app.scheduling.sweeper import create_sweeper
from app.settings import Settings
from trainers.configs import Queue
from trainers.runtime.command_line import make_help, make_typer
from workers import tasks
from workers.cloud_hosts.service import create_keepers
from workers.consumer import PersistentConsumer
from workers.doctor.announcement import announce_report
from workers.doctor.command import doctor_command
from workers.engines.deployment_manager import DeploymentManager
from workers.hosts.host_use import SAMPLE_SECONDS
from workers.hosts.worker import WorkerContext, register_worker
from workers.joining.command import join_command, leave_command
from workers.joining.env_file import is_readable_by_others, load_env_file
from workers.joining.join import find_joined_env_file
from workers.runs.dispatcher import RunDispatcher
from workers.tracking.services import explain_missing_packages
from workers.tunnels.tunnel import Tunnel, TunnelBroken
from workers.tunnels.worker_tunnel import create_worker_tunnel

EARLY_SIGNAL_POLL_SECONDS = 0.05

logger = logging.getLogger("workers")
program = make_typer()


program.command("doctor")(doctor_command)
program.command("join")(join_command)
program.command("leave")(leave_command)


@program.callback(invoke_without_command=True, help=make_help(__doc__))
def main(
    context: typer.Context,
    *,
    env_file: Annotated[
        Path | None, typer.Option(help="File of variables, as `join` writes it; those of the shell precede.")
    ] = None,
    queue: Annotated[
        list[Queue] | None,
        typer.Option(help="Queue to serve; can be repeated. Default: those of this host's hardware."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name in the list of workers. Default: host name and process id."),
    ] = None,
    exit_with_stdin: Annotated[
        bool,
        typer.Option(
            "--exit-with-stdin",
            help="Stop when standard input closes, for a worker that another process starts.",
        ),
    ] = False,
) -> None:
    """Run one worker; exit with 0 after it was asked to stop, and with 1 if Celery ended by itself."""
    if env_file is None and context.invoked_subcommand == "doctor":
        env_file = find_joined_env_file()
    if env_file is not None:
        try:
            load_env_file(env_file)
        except OSError as error:
            raise SystemExit(
                f"The file {env_file} cannot be read: {error.strerror or 'it is missing'}."
            ) from error
        if is_readable_by_others(env_file):
            print(
                f"Other users can read the secrets in {env_file}: run `chmod 600 {env_file}`.",
                file=sys.stderr,
            )
    if context.invoked_subcommand is not None:
        return
    settings = load_settings()
    logs.configure_logging(settings.log_level)
    report_thread_deaths()
    if (missing := explain_missing_packages(settings)) is not None:
        raise SystemExit(missing)
    if exit_with_stdin:
        threading.Thread(target=_exit_with_stdin, name="stdin", daemon=True).start()
    tunnel = _open_tunnel(settings)
    prepare_or_exit(prepare_worker, "database")
    prepare_or_exit(prepare_store, "artifact store")
    prepare_or_exit(get_celery, "queue")
    worker = prepare_or_exit(lambda: _register(settings, queue or [], name), "database")
    logger.info(
        "joined",
        extra={
            "worker_id": worker.worker_id,
            "queues": worker.queues,
            "gpus": [gpu["name"] for gpu in worker.registration["hardware"]["gpus"]],
            "stages": worker.stages,
        },
    )
    was_asked_to_stop = _serve(worker, settings)
    _leave(worker)
    if tunnel is not None:
        tunnel.stop()
    raise typer.Exit(0 if was_asked_to_stop else 1)


def run_command(arguments: Sequence[str], prog_name: str) -> None:
    """Run the command line under the name that its help shows."""
    program(arguments, prog_name=prog_name)


def _open_tunnel(settings: Settings) -> Tunnel | None:
    """Open the tunnel to the control plane, if the worker has one; what it leads to is waited for."""
    try:
        tunnel = create_worker_tunnel(settings)
        if tunnel is not None:
            tunnel.start()
    except (ValueError, TunnelBroken) as error:
        raise SystemExit(f"The tunnel of TUNESMITH_TUNNEL_URL cannot be opened: {error}") from error
    return tunnel


def _register(settings: Settings, queues: Sequence[Queue], name: str | None) -> WorkerContext:
    """Register this worker; from then on, a signal waits until it can be handled.

    Before that, and while the database is away, a signal ends the process at once.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    _defer_early_signals()
    try:
        return register_worker(settings, queues, name)
    except BaseException:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        raise


def _defer_early_signals() -> None:
    """Repeat a signal that arrives before Celery has installed its handlers, once it has."""

    def defer(number: int, frame: FrameType | None) -> None:
        threading.Thread(target=repeat, args=(number,), name="early signal", daemon=True).start()

    def repeat(number: int) -> None:
        while signal.getsignal(number) is defer:
            time.sleep(EARLY_SIGNAL_POLL_SECONDS)
        os.kill(os.getpid(), number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, defer)


def _serve(worker: WorkerContext, settings: Settings) -> bool:
    """Work until the end; return False if Celery ended by itself."""
    celery = get_celery()
    dispatcher = RunDispatcher(worker)
    tasks.register_task(celery, dispatcher)
    sweeper = create_sweeper(settings)
    collector = Collector(settings)
    keepers = create_keepers(settings, worker.worker_id)
    deployments = threading.Thread(target=DeploymentManager(worker).run, name="deployments")
    if worker.fork_server is not None:
        worker.fork_server.start()
    host_use = PeriodicThread("use of the host", worker.announce_use, SAMPLE_SECONDS)
    worker.leases.start()
    host_use.start()
    worker.tracker.start()
    sweeper.start()
    collector.start()
    for keeper in keepers:
        keeper.start()
    deployments.start()
    dispatcher.start()
    threading.Thread(target=announce_report, args=(worker,), name="doctor", daemon=True).start()
    try:
        _receive_notifications(worker, celery)
    finally:
        was_asked_to_stop = worker.stopping.is_set()
        worker.stopping.set()
        # Celery's handlers no longer do anything; a second Ctrl-C does not wait for the current runs.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        dispatcher.join()
        deployments.join()
        worker.tracker.stop()
        sweeper.stop()
        collector.stop()
        host_use.stop()
        for keeper in keepers:
            keeper.stop()
        worker.leases.stop()
        if worker.fork_server is not None:
            worker.fork_server.stop()
    return was_asked_to_stop


def _receive_notifications(worker: WorkerContext, celery: Celery) -> None:
    """Run Celery in this thread until a signal stops it."""
    # Celery itself waits for its tasks: runs and engines must stop at once, so that they save and leave.
    signals.worker_shutting_down.connect(lambda **_: worker.stopping.set(), weak=False)
    # Celery warns about running as root because of pickle, which we do not accept.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    # One thread handles notifications, while the main thread keeps receiving messages.
    CeleryWorker(
        app=celery,
        hostname=f"{worker.worker_id}@{os.uname().nodename}",
        queues=[queue.value for queue in worker.queues],
        pool="threads",
        concurrency=1,
        consumer_cls=PersistentConsumer,
        loglevel=worker.settings.log_level,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    ).start()


def _leave(worker: WorkerContext) -> None:
    try:
        worker.leave()
    except Exception as error:
        # It is then listed as alive until its last heartbeat is too old.
        logger.warning("cannot write that this worker has stopped: %s", describe_error(error))


def _exit_with_stdin() -> None:
    """Stop, as after SIGTERM, once the process that started this worker is gone."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    program(prog_name="python -m workers")
