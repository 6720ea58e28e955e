"""The spec that repeats a job: its resolved stages, with the same datasets and model revisions."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from pydantic import ValidationError

from app.http.error_responses import list_field_errors
from app.http.errors import UnprocessableContent, field_error
from app.jobs.replays.schemas import ReplayCreate
from app.jobs.schemas import JobCreate, ReplayedSpec
from app.tables import Job, Run
from trainers.configs.base import UNPRINTABLE
from trainers.configs.references import HubModel, parse_location


def make_replay(job: Job, runs: Sequence[Run], replay: ReplayCreate) -> JobCreate:
    """Return the spec of a replay.

    A stage has the config of its run, in which names were resolved to ids when the job was posted; a model
    of the hub gets the revision that the run has used.

    Raises:
        UnprocessableContent: A change names no stage of the job, or makes a stage invalid.
    """
    names = [run.name for run in runs]
    for name in replay.changes:
        if name not in names:
            message = f"The job has no stage {name!r}. Its stages: {', '.join(names)}."
            raise field_error(f"changes.{name}", message)
    stages = [_merge(_pin(run), replay.changes.get(run.name, {})) for run in runs]
    # Older jobs may have characters that a request may not have.
    labels = {key: UNPRINTABLE.sub("", value) for key, value in job.labels.items()}
    fields = {
        "name": (UNPRINTABLE.sub("", job.name) or "replay") if replay.name is None else replay.name,
        "labels": labels if replay.labels is None else replay.labels,
        "priority": job.priority if replay.priority is None else replay.priority,
        "reuse": replay.reuse,
        "stages": stages,
    }
    try:
        return ReplayedSpec.model_validate(fields)
    except ValidationError as error:
        raise _as_replay_error(error, fields, names) from error


def _pin(run: Run) -> dict[str, Any]:
    """Return the run's config with its queue, and with the revisions of its models."""
    config = {**deepcopy(run.config), "name": run.name, "queue": run.queue.value}
    # The config is not parsed: it may be of an older version, whose fields the changes can correct.
    for path, model in (run.inputs or {}).get("models", {}).items():
        *parents, last = path.split(".")
        target: Any = config
        for name in parents:
            target = target[int(name)] if isinstance(target, list) else target[name]
        value, weights = target[last], model["adapter"] or model["base"]
        if isinstance(value, str) and isinstance(parse_location(value), HubModel):
            target[last] = weights["origin"]
    return config


def _merge(target: Any, patch: Any) -> Any:
    """Return the target with a JSON Merge Patch applied (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merge(merged.get(name), value)
    return merged


def _as_replay_error(
    error: ValidationError, spec: dict[str, Any], names: Sequence[str]
) -> UnprocessableContent:
    """Return the error with the fields of the replay in place of those of the spec."""
    errors = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
    fields = []
    for one in list_field_errors(errors, spec):
        root, _, rest = one["field"].partition(".")
        position, _, field = rest.partition(".")
        if root == "stages" and position.isdecimal():
            one = {**one, "field": f"changes.{names[int(position)]}.{field}"}
        fields.append(one)
    return UnprocessableContent(
        f"The replay is invalid. {fields[0]['field']}: {fields[0]['message']}", fields=fields
    )
