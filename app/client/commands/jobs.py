"""Jobs: training, applying a spec, listing, and acting on them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.client.api.modes import Blocking
from app.client.clients import Client
from app.client.commands.following import follow_job
from app.client.commands.output import (
    DetachOption,
    JsonOption,
    connect,
    format_age,
    note,
    out,
    print_json,
    print_table,
)
from app.client.commands.planning import print_plan
from app.client.commands.scores import print_job_scores, write_report
from app.client.commands.specs import (
    load_spec,
    parse_labels,
    parse_settings,
    resolve_data,
    resolve_job,
    resolve_model,
    upload_files,
)
from app.client.views.jobs import RemoteJob

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Job, job's name, or `last`.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan, and start nothing.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Field of the stage; can be repeated."),
]
Labels = Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Can be repeated.")]
Report = Annotated[
    Path | None, typer.Option(help="File to which scores and gates are appended as Markdown at the end.")
]


def train(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Dataset, or a file, which is uploaded.")],
    base: Annotated[str, typer.Option("--base", "-b", help="Model to start from: hub id, folder or id.")],
    stage: Annotated[str, typer.Option(help="Kind of training, such as sft, dpo or kto.")] = "sft",
    test: Annotated[str | None, typer.Option(help="Data on which base and result are compared.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="Metric of --test; can be repeated.")] = None,
    deploy: Annotated[str | None, typer.Option(help="Name under which the model is served.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the job.")] = None,
    settings: Settings = None,
    labels: Labels = None,
    dry_run: DryRun = False,
    detach: DetachOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a model on data, and optionally evaluate and serve it."""
    changes = parse_settings(settings or [])
    with connect() as client:
        start = resolve_model(client, base)
        stages: list[dict[str, Any]] = [
            {"stage": stage, "base": start, "dataset": resolve_data(client, data), **changes}
        ]
        if test is not None:
            scored: dict[str, Any] = {"dataset": resolve_data(client, test), "model": {"stage": stage}}
            if metric:
                scored["metrics"] = metric
            stages.append({"stage": "evaluate", "baseline": start, **scored})
        if deploy is not None:
            stages.append({"stage": "deploy", "model": {"stage": stage}, "deployment": deploy})
        spec = {"name": name or Path(data).stem, "stages": stages}
        run_job(client, {**spec, "labels": parse_labels(labels or [])}, dry_run, detach, as_json)


def apply(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Job spec as YAML, with ${ENV}, or JSON.")],
    labels: Labels = None,
    report: Report = None,
    key: Annotated[
        str | None, typer.Option(help="Idempotency key: the same key and spec start one job only.")
    ] = None,
    dry_run: DryRun = False,
    detach: DetachOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run the job of a file; exit with 1 if it fails or a gate is not met.

    A dataset that is a file, such as `dataset: data/train.jsonl`, is uploaded first; its path is relative to
    the spec.
    """
    spec = load_spec(file)
    spec["labels"] = {**spec.get("labels", {}), **parse_labels(labels or [])}
    with connect() as client:
        spec = upload_files(client, spec, file.parent)
        run_job(client, spec, dry_run, detach, as_json, report=report, key=key)


def run_job(
    client: Client,
    spec: dict[str, Any],
    dry_run: bool,
    detach: bool,
    as_json: bool,
    *,
    report: Path | None = None,
    key: str | None = None,
) -> None:
    """Plan or start a job, follow it, and print what has come of it."""
    if dry_run:
        print_plan(client.jobs.plan(spec), as_json)
        return
    job = client.jobs.create(spec, idempotency_key=key)
    note(f"{job.id} ({job.name}) is {job.status}: {' → '.join(run.name for run in job.runs)}")
    if detach:
        print_json(job) if as_json else out().print(job.id)
        return
    try:
        follow_job(client, job)
    finally:
        if job.finished:
            for warning in job.warnings[:5]:
                note(f"{warning.run}: {warning.message}")
            print_json(job) if as_json else print_job_scores(client, job)
            if report is not None:
                write_report(client, job, report)
    if not as_json:
        _print_next_steps(job)


def list_jobs(
    status: Annotated[str | None, typer.Option(help="Only jobs with this status.")] = None,
    name: Annotated[str | None, typer.Option(help="Only jobs with this name.")] = None,
    labels: Labels = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of jobs.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List the jobs, newest first."""
    with connect() as client:
        query = client.jobs.list(
            status=status, name=name, labels=parse_labels(labels or []), limit=min(limit, 200)
        )
        jobs = [job for _, job in zip(range(limit), query, strict=False)]
    if as_json:
        print_json(jobs)
        return
    rows = [[job.name, job.status, f"{job.progress:.0%}", format_age(job.created_at), job.id] for job in jobs]
    print_table(["name", "status", "done", "age", "id"], rows, empty="There is no such job.")


def show_job(job: JobArgument, as_json: JsonOption = False) -> None:
    """Print a job: its runs, what they wait for, errors, models and scores."""
    with connect() as client:
        found = resolve_job(client, job)
        if as_json:
            print_json(found)
            return
        out().print(f"{found.id}  {found.name}  {found.status}", markup=False)
        rows = [
            [run.name, run.status, f"{run.progress:.0%}", run.queue, run.model_id, run.waiting_for]
            for run in found.runs
        ]
        print_table(["stage", "status", "done", "queue", "model", "waits for"], rows, empty="")
        for run in found.runs:
            if run.error is not None:
                note(f"{run.name}: {run.error.message} {run.error.hint or ''}")
        for warning in found.warnings:
            note(f"{warning.run}: {warning.message}")
        print_job_scores(client, found)


def pause(job: JobArgument, as_json: JsonOption = False) -> None:
    """Stop a job after a checkpoint, so that it can be resumed."""
    _act(job, "pause", as_json)


def resume(job: JobArgument, as_json: JsonOption = False) -> None:
    """Continue a paused job from its last checkpoint."""
    _act(job, "resume", as_json)


def cancel(job: JobArgument, as_json: JsonOption = False) -> None:
    """Cancel a job."""
    _act(job, "cancel", as_json)


def retry(job: JobArgument, as_json: JsonOption = False) -> None:
    """Start a failed or cancelled job again, from the stage that failed or was cancelled."""
    _act(job, "retry", as_json)


def diff(
    a: Annotated[str, typer.Argument(help="Job, job's name, or `last`.")],
    b: Annotated[str, typer.Argument(help="Another job.")],
    as_json: JsonOption = False,
) -> None:
    """Print what two jobs differ in: configs, inputs, environment and results."""
    with connect() as client:
        change = client.jobs.diff(resolve_job(client, a).id, resolve_job(client, b).id)
    if as_json:
        print_json(change)
        return
    rows = [
        [stage.stage, kind, one.field, one.a, one.b]
        for stage in change.stages
        for kind in ("config", "inputs", "environment", "results")
        for one in getattr(stage, kind)
    ]
    print_table(["stage", "of", "field", change.a, change.b], rows, empty="The jobs are equal.")


def _act(name: str, action: str, as_json: bool) -> None:
    with connect() as client:
        job = resolve_job(client, name)
        actions = {"pause": job.pause, "resume": job.resume, "cancel": job.cancel, "retry": job.retry}
        actions[action]()
    print_json(job) if as_json else out().print(f"{job.id} is {job.status}")


def _print_next_steps(job: RemoteJob[Blocking]) -> None:
    deployed = next((run.config["deployment"] for run in job.runs if run.stage == "deploy"), None)
    if deployed is not None:
        note(f"Talk to it: tunesmith chat {deployed}")
    if job.model_id is not None:
        note(f"The model is {job.model_id}: `tunesmith get model {job.model_id}` downloads it.")
