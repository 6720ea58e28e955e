"""Before a job: the fields of its stages, its plan, and the preflight with memory, time and cost."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from app.client.api.errors import WorkFailed
from app.client.api.modes import Blocking
from app.client.commands.following import follow_job
from app.client.commands.output import (
    DetachOption,
    ExitCode,
    JsonOption,
    connect,
    format_bytes,
    format_seconds,
    note,
    out,
    print_json,
    print_table,
)
from app.client.commands.specs import load_spec, upload_files
from app.client.stage_fields import list_fields, list_stages, read_schema
from app.client.views.jobs import JobPlan, RemoteJob


def stage(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="STAGE", help="Kind of stage, such as sft; without one, all are listed."),
    ] = None,
    field: Annotated[
        str | None, typer.Argument(metavar="FIELD", help="Field to describe in full, such as tuning.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the fields of a stage: type, default and meaning. Needs no service; --json prints the schema."""
    if kind is None:
        stages = list_stages()
        if as_json:
            print_json(stages)
            return
        print_table(["stage", "purpose"], [[name, text] for name, text in stages.items()], empty="")
        return
    schema = read_schema(kind, field)
    if as_json:
        print_json(schema)
        return
    fields = list_fields(kind)
    if field is not None:
        out().print(schema.get("description") or "This field has no description.", markup=False)
        fields = [one for one in fields if one.name == field or one.name.startswith(f"{field}.")]
    rows = [[one.name, one.type, _show_default(one.default, one.required), one.meaning] for one in fields]
    print_table(["field", "type", "default", "meaning"], rows, empty="")
    if field is None:
        note(f"A field in full: tunesmith stage {kind} FIELD. Set one: --set FIELD=VALUE, or in a job file.")


def preflight(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Job spec as YAML, with ${ENV}, or JSON.")],
    probe_steps: Annotated[
        int, typer.Option(min=0, max=100, help="Steps of each stage to train, for time and cost; 0 for none.")
    ] = 0,
    price: Annotated[
        float | None,
        typer.Option(min=0, help="Price of the host per hour, for the cost; needs --probe-steps."),
    ] = None,
    detach: DetachOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check data, settings and memory of a job on its worker; exit with 1 if they have an error."""
    spec = load_spec(file)
    with connect() as client:
        spec = upload_files(client, spec, file.parent)
        started = client.jobs.preflight(spec, probe_steps=probe_steps, price_per_hour=price or None)
        job = started.job
        for one in started.skipped:
            note(f"{one['stage']} is not checked: {one['reason']}")
        if detach:
            print_json(job) if as_json else out().print(job.id)
            return
        try:
            follow_job(client, job)
        except WorkFailed as failed:
            note(failed.message)
    print_json(job) if as_json else _print_preflight(job, probe_steps)
    if job.status != "succeeded" or not all((run.result or {}).get("passed", True) for run in job.runs):
        raise typer.Exit(ExitCode.failed)


def print_plan(plan: JobPlan, as_json: bool) -> None:
    """Print where each stage of a job would run, its steps and its warnings."""
    if as_json:
        print_json(plan)
        return
    rows = [
        [
            one.name,
            one.queue,
            one.estimated_steps,
            one.queue_reason,
            one.waiting_for or ", ".join(one.workers),
        ]
        for one in plan.stages
    ]
    print_table(["stage", "queue", "steps", "why", "worker"], rows, empty="")
    for planned in plan.stages:
        for warning in planned.warnings:
            note(f"{planned.name}: {warning}")
    note("Memory, time and cost are measured on a worker: tunesmith preflight FILE --probe-steps 10")


def _print_preflight(job: RemoteJob[Blocking], probe_steps: int) -> None:
    console = out()
    for run in job.runs:
        if run.stage != "preflight":
            continue
        result: dict[str, Any] = run.result or {}
        state = run.status if not result else "passed" if result["passed"] else "NOT PASSED"
        console.print(f"{run.name}: {state}", markup=False)
        if run.error is not None:
            console.print(f"  {run.error.message} {run.error.hint or ''}", markup=False)
        for host in (result.get("memory") or {}).get("hosts", ()):
            fits = "fits" if host["fits"] else f"does not fit. {host.get('advice', '')}"
            needed, usable = format_bytes(host["needed_bytes"]), format_bytes(host["usable_bytes"])
            console.print(f"  memory on {host['worker']}: {needed} of {usable}, {fits}", markup=False)
        if (probe := result.get("probe")) is not None:
            duration = format_seconds(probe["estimated_seconds"])
            console.print(f"  time: {duration} for {probe['total_steps']:,} steps", markup=False)
            if probe["cost"] is not None:
                console.print(f"  cost: {probe['cost']:,g}, by --price", markup=False)
        for finding in result.get("findings") or ():
            console.print(f"  {finding['level']}: {finding['message']} [{finding['code']}]", markup=False)
            if finding.get("hint"):
                console.print(f"    {finding['hint']}", markup=False)
    if not probe_steps:
        note("Time and cost: repeat the command with --probe-steps 10, and --price for the cost.")


def _show_default(default: Any, is_required: bool) -> str:
    if is_required:
        return "required"
    if default is None:
        return ""
    return default if isinstance(default, str) else json.dumps(default)
