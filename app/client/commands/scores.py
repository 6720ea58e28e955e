"""Scores: evaluating models, comparing evaluations, and printing both."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from app.client.api.modes import Blocking
from app.client.clients import Client
from app.client.commands.following import follow_job
from app.client.commands.output import DetachOption, JsonOption, connect, note, print_json, print_table
from app.client.commands.specs import (
    SpecUnusable,
    parse_settings,
    resolve_data,
    resolve_job,
    resolve_model,
)
from app.client.views.evaluations import DifferenceRecord, RemoteEvaluation, ScoreRecord
from app.client.views.jobs import RemoteJob

SCORE_COLUMNS = ["role", "model", "metric", "value", "95 % interval", "rows"]
DIFFERENCE_COLUMNS = ["difference", "metric", "value", "95 % interval", "p", "won / lost / equal", "verdict"]


def evaluate(
    model: Annotated[str, typer.Argument(help="Model: id, hub id, folder, or the job that produced it.")],
    data: Annotated[str, typer.Option("--data", help="Dataset, or a file, which is uploaded.")],
    baseline: Annotated[str | None, typer.Option(help="Model to compare with, such as the base.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="Metric; can be repeated.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Field of the stage evaluate.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the job.")] = None,
    detach: DetachOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score a model on data, with intervals."""
    fields = parse_settings(settings or [])
    if metric:
        fields["metrics"] = metric
    with connect() as client:
        if baseline is not None:
            fields["baseline"] = resolve_model(client, baseline)
        dataset = resolve_data(client, data)
        name = name or f"evaluate-{Path(data).stem}"
        job = client.evaluations.create(resolve_model(client, model), dataset, name=name, **fields)
        note(f"{job.id} ({job.name}) is {job.status}")
        if not detach:
            follow_job(client, job)
        if as_json:
            print_json(job if detach else {"job": job, "evaluations": job.evaluations()})
        elif not detach:
            print_job_scores(client, job)


def compare(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="A B…", help="Evaluations, or jobs or models whose newest evaluation is meant."
        ),
    ],
    metric: Annotated[list[str] | None, typer.Option(help="Metric to compare; can be repeated.")] = None,
    report: Annotated[Path | None, typer.Option(help="File for the HTML report.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare evaluations on the rows that they have in common, pair by pair."""
    if len(targets) < 2:
        raise SpecUnusable("compare needs two or more evaluations.", "`tunesmith eval` makes them.")
    with connect() as client:
        evaluations = [_find_evaluation(client, target) for target in targets]
        job = client.comparisons.create([one.id for one in evaluations], metrics=metric)
        job.wait()
        (comparison,) = job.comparisons()
        if report is not None:
            comparison.report(report)
        assert comparison.result is not None
        if as_json:
            print_json(comparison)
            return
        # The result has the ids of the evaluations, and a person knows what was typed.
        names = {one.id: target for one, target in zip(evaluations, targets, strict=True)}
        models = comparison.result.models
        print_scores(
            (names.get(one.role, one.role), one.model, score) for one in models for score in one.scores
        )
        for each in comparison.result.differences:
            each.role, each.other = names.get(each.role, each.role), names.get(each.other, each.other)
        print_differences(comparison.result.differences)
        for warning in comparison.result.warnings:
            note(warning)


def print_job_scores(client: Client, job: RemoteJob[Blocking]) -> None:
    """Print the scores and the decisions of gates that a job has produced, if there are any."""
    evaluations = job.evaluations() if any(run.stage in ("evaluate", "lm_eval") for run in job.runs) else []
    if evaluations:
        print_scores((one.role, one.model, score) for one in evaluations for score in one.scores)
        print_differences(_differences(client, evaluations))
    for gate in find_gates(job):
        note(f"{'met' if gate['met'] else 'NOT MET'}: {gate['message']}")


def print_scores(scores: Iterable[tuple[str, str, ScoreRecord]]) -> None:
    """Print scores as a table."""
    print_table(SCORE_COLUMNS, _score_rows(scores), empty="There is no score.")


def print_differences(differences: Sequence[DifferenceRecord]) -> None:
    """Print paired differences as a table; nothing if there are none."""
    if differences:
        print_table(DIFFERENCE_COLUMNS, _difference_rows(differences), empty="")


def find_gates(job: RemoteJob[Blocking]) -> list[dict[str, Any]]:
    """Return the decisions of a job's gates: their results, or the details of their errors."""
    decisions = [
        run.result or (run.error.details if run.error else None) for run in job.runs if run.stage == "gate"
    ]
    return [one for one in decisions if one is not None and "met" in one]


def write_report(client: Client, job: RemoteJob[Blocking], path: Path) -> None:
    """Append the scores and gates of a job to a file as Markdown."""
    evaluations = job.evaluations()
    scores = _score_rows((one.role, one.model, score) for one in evaluations for score in one.scores)
    lines = [f"## {job.name}: {job.status}", "", f"Job `{job.id}`", ""]
    for gate in find_gates(job):
        lines += [f"**{'Gate met' if gate['met'] else 'Gate not met'}:** {gate['message']}", ""]
    if job.error is not None and job.error.code != "gate_not_met":
        lines += [f"**{job.error.code}:** {job.error.message} {job.error.hint or ''}", ""]
    lines += _markdown(SCORE_COLUMNS, scores)
    lines += _markdown(DIFFERENCE_COLUMNS, _difference_rows(_differences(client, evaluations)))
    with path.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    note(f"The report is in {path}.")


def _find_evaluation(client: Client, target: str) -> RemoteEvaluation[Blocking]:
    if target.startswith("evaluation_"):
        return client.evaluations.get(target)
    if target.startswith("model_") or "/" in target:
        found = client.evaluations.list(model=target)
    else:
        found = client.evaluations.list(job=resolve_job(client, target).id)
    for one in found:
        if one.role == "model" or one.model_id == target:
            return one
    raise SpecUnusable(f"{target} has no evaluation.", f"Make one: tunesmith eval {target} --data DATASET")


def _differences(client: Client, evaluations: Sequence[RemoteEvaluation[Blocking]]) -> list[DifferenceRecord]:
    """Return the differences of a job's runs, each once."""
    first = {one.run_id: one for one in evaluations if one.role == "model"}
    return [each for one in first.values() for each in client.evaluations.get(one.id).differences]


def _score_rows(scores: Iterable[tuple[str, str, ScoreRecord]]) -> list[list[str]]:
    return [
        [role, model, one.metric, f"{one.value:.4g}", _interval(one), f"{one.n:,}"]
        for role, model, one in scores
    ]


def _difference_rows(differences: Sequence[DifferenceRecord]) -> list[list[str]]:
    return [
        [
            f"{one.role} − {one.other}",
            one.metric,
            f"{one.difference:+.4g}",
            _interval(one),
            f"{one.p_adjusted:.3g}",
            f"{one.wins:,} / {one.losses:,} / {one.ties:,}",
            one.verdict,
        ]
        for one in differences
    ]


def _interval(one: ScoreRecord | DifferenceRecord) -> str:
    return "" if one.interval_95 is None else f"{one.interval_95[0]:.4g} to {one.interval_95[1]:.4g}"


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    table = [columns, ["---"] * len(columns), *rows]
    return [*("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table), ""]
