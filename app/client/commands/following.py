"""Following: a job until it ends, its log, and the table of all that runs."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from app.client.api.errors import WaitInterrupted
from app.client.api.modes import Blocking
from app.client.clients import Client
from app.client.commands.output import JsonOption, connect, err, format_age, make_table, note, out, print_json
from app.client.commands.specs import resolve_job
from app.client.views.jobs import FINISHED, JobEvent, JobSummary, RemoteJob

TOP_JOBS = 20
# Without a terminal, a line of progress is printed after each quarter of a run.
LINE_EVERY = 0.25


def follow_job(client: Client, job: RemoteJob[Blocking]) -> None:
    """Show the progress of a job until it ends; raises its error, and WaitInterrupted after Ctrl-C."""
    try:
        with _progress_of(job) as show:
            for event in job.stream():
                show(event)
        # The stream has ended, or the job was paused and resumed by somebody: the row decides.
        job.wait()
    except KeyboardInterrupt as stopped:
        if isinstance(stopped, WaitInterrupted):
            raise
        raise WaitInterrupted(f"{job.id} continues. {job.follow_hint}") from None


def logs(
    target: Annotated[str, typer.Argument(metavar="JOB", help="Job, run, job's name, or `last`.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until the job ends.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the log of a job's runs; with -f, exit with 1 if the job fails."""
    with connect() as client:
        job = resolve_job(client, target)
        runs = [run for run in job.runs if not target.startswith("run_") or run.id == target]
        if as_json:
            print_json({run.name: list(run.logs()) for run in runs})
            return
        names = {run.id: f"{run.name} | " if len(runs) > 1 else "" for run in runs}
        if not follow:
            for run in runs:
                for line in run.logs():
                    _print_line(names[run.id], line)
            return
        try:
            for event in job.stream():
                if event.run_id in names and event.type == "log":
                    for line in event.data["lines"]:
                        _print_line(names[event.run_id], line)
                elif event.run_id in names and event.type == "status":
                    note(f"{event.run} is {event.data['status']}")
            job.wait()
        except KeyboardInterrupt:
            raise WaitInterrupted(f"{job.id} continues. {job.follow_hint}") from None


def wait(
    target: Annotated[str, typer.Argument(metavar="JOB", help="Job, job's name, or `last`.")],
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait. [default: no limit]")] = None,
    as_json: JsonOption = False,
) -> None:
    """Wait until a job has ended; exit with 1 if it has failed, and with 4 at the timeout."""
    with connect() as client:
        job = resolve_job(client, target)
        if timeout is None and not as_json:
            follow_job(client, job)
        else:
            job.wait(timeout)
    if as_json:
        print_json(job)


def top(
    once: Annotated[bool, typer.Option("--once", help="Print the table once.")] = False,
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two updates.")] = 2.0,
    as_json: JsonOption = False,
) -> None:
    """Show the jobs, queues and workers, live; Ctrl-C ends it."""
    with connect() as client:
        if as_json:
            jobs, workers, queues = _newest_jobs(client), client.workers.list(), client.queues.list()
            print_json({"jobs": jobs, "workers": list(workers), "queues": list(queues)})
            return
        console = out()
        if once or not console.is_terminal:
            console.print(_draw_top(client))
            return
        try:
            with Live(_draw_top(client), console=console, auto_refresh=False) as live:
                while True:
                    time.sleep(interval)
                    live.update(_draw_top(client), refresh=True)
        except KeyboardInterrupt:
            return


def _draw_top(client: Client) -> Group:
    jobs = [
        [
            job.name,
            job.status,
            " → ".join(_stage_text(stage) for stage in job.stages),
            format_age(job.created_at),
            job.id,
        ]
        for job in _newest_jobs(client)
    ]
    workers = [
        [one.name, ", ".join(one.queues), f"{len(one.runs)} runs, {len(one.deployments)} deployments"]
        for one in client.workers.list()
    ]
    queues = [
        [one.queue, f"{one.free_slots} of {one.slots}", str(one.running), str(one.waiting), str(one.later)]
        for one in client.queues.list()
        if one.workers or one.running or one.waiting or one.later
    ]
    return Group(
        make_table(["job", "status", "stages", "age", "id"], jobs),
        "",
        make_table(["queue", "free", "running", "waiting", "after another stage"], queues),
        "",
        make_table(["worker", "queues", "holds"], workers or [["none", "", "start one: tunesmith worker"]]),
    )


def _newest_jobs(client: Client) -> list[JobSummary]:
    """Return the newest jobs, those that have not ended first."""
    newest = [job for _, job in zip(range(TOP_JOBS), client.jobs.list(limit=TOP_JOBS), strict=False)]
    return sorted(newest, key=lambda job: job.status in FINISHED)


def _stage_text(stage: Any) -> str:
    return (
        f"{stage.name} {stage.progress:.0%}" if stage.status == "running" else f"{stage.name} {stage.status}"
    )


def _print_line(prefix: str, line: str) -> None:
    out().print(prefix + line, markup=False)


@contextmanager
def _progress_of(job: RemoteJob[Blocking]) -> Iterator[Any]:
    """Yield a function that shows an event: as bars on a terminal, and else as lines."""
    console = err()
    if not console.is_terminal:
        yield _LineProgress()
        return
    columns = (
        TextColumn("{task.description:12}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield _BarProgress(job, progress)


class _BarProgress:
    """A bar for each run."""

    def __init__(self, job: RemoteJob[Blocking], progress: Progress) -> None:
        self._progress = progress
        self._bars = {
            run.id: progress.add_task(escape(run.name), total=None, start=False, state=run.status)
            for run in job.runs
        }

    def __call__(self, event: JobEvent) -> None:
        bar = self._bars[event.run_id]
        if event.type == "status":
            status = event.data["status"]
            if status == "running":
                self._progress.start_task(bar)
            if status == "succeeded":
                self._progress.update(bar, total=1, completed=1)
            if status in ("succeeded", "failed", "cancelled", "skipped"):
                self._progress.stop_task(bar)
            self._progress.update(bar, state=status)
        elif event.type == "progress" and event.data.get("total_steps"):
            self._progress.update(bar, completed=event.step, total=event.data["total_steps"])
        elif event.type == "metrics" and (loss := event.data.get("loss", math.nan)) is not math.nan:
            # A loss that is not finite is null.
            self._progress.update(bar, state="loss not finite" if loss is None else f"loss {loss:.3f}")


class _LineProgress:
    """Lines for a log: one for each status, and one for each quarter of a run."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def __call__(self, event: JobEvent) -> None:
        if event.type == "status":
            note(f"{event.run} is {event.data['status']}")
        elif event.type == "progress" and event.data.get("total_steps") and event.step is not None:
            share = event.step / event.data["total_steps"]
            if share >= self._next.get(event.run_id, LINE_EVERY):
                note(f"{event.run} {share:.0%}")
                self._next[event.run_id] = share + LINE_EVERY
