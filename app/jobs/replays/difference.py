"""What two jobs differ in: configs, inputs, code and environment, and results, stage by stage."""

from collections.abc import Iterator, Sequence
from typing import Any

from app.jobs.replays.schemas import FieldDifference, JobDifferenceView, StageDifference
from app.tables import Run

MAX_DIFFERENCES = 2_000
ENVIRONMENT = ("code_sha256", "versions", "trainer_python", "queue")
LISTS = ("config", "inputs", "environment", "results")


def compare_jobs(a: str, runs_a: Sequence[Run], b: str, runs_b: Sequence[Run]) -> JobDifferenceView:
    """Return the differences of all stages, those with the same name compared with each other."""
    by_name_a, by_name_b = ({run.name: run for run in runs} for runs in (runs_a, runs_b))
    names = dict.fromkeys([*by_name_a, *by_name_b])
    stages = [_compare_runs(name, by_name_a.get(name), by_name_b.get(name)) for name in names]
    return JobDifferenceView(a=a, b=b, stages=stages, omitted=_shorten(stages))


def compare_configs(runs: Sequence[Run]) -> list[tuple[str, list[Any]]]:
    """Return the fields that differ between the configs of runs, each with its value in every run."""
    configs = [dict(_flatten(run.config)) for run in runs]
    fields = dict.fromkeys(field for config in configs for field in config)
    rows = [(field, [config.get(field) for config in configs]) for field in fields]
    return [row for row in rows if any(value != row[1][0] for value in row[1])][:MAX_DIFFERENCES]


def _compare_runs(name: str, a: Run | None, b: Run | None) -> StageDifference:
    inputs_a, inputs_b = (run.inputs if run is not None else None for run in (a, b))
    if inputs_a is None or inputs_b is None:
        # A run that has not started has read nothing yet, which is no difference.
        inputs_a = inputs_b = {}
    fingerprints = {run.fingerprint if run is not None else None for run in (a, b)}
    return StageDifference(
        stage=name,
        a=a.id if a is not None else None,
        b=b.id if b is not None else None,
        equal=len(fingerprints) == 1 and None not in fingerprints,
        config=_compare(a.config if a is not None else {}, b.config if b is not None else {}),
        inputs=_compare(_select(inputs_a, "models", "datasets"), _select(inputs_b, "models", "datasets")),
        environment=_compare(_select(inputs_a, *ENVIRONMENT), _select(inputs_b, *ENVIRONMENT)),
        results=_compare(_numbers(a), _numbers(b)),
    )


def _select(inputs: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: inputs[name] for name in names if name in inputs}


def _numbers(run: Run | None) -> dict[str, Any]:
    """Return the numbers of a result by their paths."""
    result = run.result if run is not None and run.result is not None else {}
    return {path: value for path, value in _flatten(result) if isinstance(value, int | float)}


def _compare(a: dict[str, Any], b: dict[str, Any]) -> list[FieldDifference]:
    values_a, values_b = dict(_flatten(a)), dict(_flatten(b))
    return [
        FieldDifference(field=path, a=values_a.get(path), b=values_b.get(path))
        for path in dict.fromkeys([*values_a, *values_b])
        if values_a.get(path) != values_b.get(path)
    ]


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values inside objects and lists with their paths."""
    children = value.items() if isinstance(value, dict) else enumerate(value)
    for name, child in children:
        child_path = f"{path}.{name}" if path else str(name)
        if isinstance(child, dict | list) and child:
            yield from _flatten(child, child_path)
        else:
            yield child_path, child


def _shorten(stages: Sequence[StageDifference]) -> int:
    """Keep the first differences of all stages together; return the number of the others."""
    left, omitted = MAX_DIFFERENCES, 0
    for stage in stages:
        for name in LISTS:
            differences = getattr(stage, name)
            omitted += max(0, len(differences) - left)
            setattr(stage, name, differences[:left])
            left = max(0, left - len(differences))
    return omitted
