"""Sweeps: a training stage with `sweep` becomes a stage for each combination, and one that selects the best.

The selecting stage has the name of the sweep, so that `{stage: <name>}` is the best model. The stages run,
are shown and are repeated as any others.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from app.http.errors import UnprocessableContent, field_error
from app.jobs.graph.needs import stage_name
from app.jobs.graph.resolved_stage import ResolvedStage
from app.jobs.schemas import JobCreate
from app.settings import Settings
from trainers.configs import SelectConfig, StageLimits, parse_stage
from trainers.configs.base import MAX_NEEDS
from trainers.configs.stage_config import AnyStage
from trainers.configs.stages.evaluations.select import SweepTry
from trainers.configs.validation import SweptField, ValidatedTrainingConfig

Values = dict[str, Any]


@dataclass(frozen=True)
class ExpandedSpec:
    """A job spec without sweeps, and where its stages come from."""

    spec: JobCreate
    positions: list[int]
    """For each stage, its position in the spec that was posted."""

    def restore_fields(self, error: UnprocessableContent) -> UnprocessableContent:
        """Return an error with the fields of the spec that was posted; runs of a sweep share theirs."""
        if error.fields is None or len(self.positions) == len(set(self.positions)):
            return error
        fields = []
        for each in error.fields:
            root, _, rest = each["field"].partition(".")
            position, _, rest = rest.partition(".")
            if root == "stages" and position.isdecimal():
                path = ".".join([root, str(self.positions[int(position)]), *([rest] if rest else [])])
                each = {**each, "field": path}
            if each not in fields:
                fields.append(each)
        return UnprocessableContent(error.message, hint=error.hint, fields=fields)


def expand_sweeps(spec: JobCreate, settings: Settings) -> ExpandedSpec:
    """Expand each sweep of a job; raises UnprocessableContent naming the value that is invalid."""
    stages: list[AnyStage] = []
    positions: list[int] = []
    n_runs = 0
    for position, stage in enumerate(spec.stages):
        added = [stage]
        if isinstance(stage, ValidatedTrainingConfig) and stage.sweep is not None:
            previous = stage_name(spec.stages[position - 1]) if position else None
            added = _Sweep(stage, f"stages.{position}", previous).expand(settings.max_sweep_runs)
            n_runs += len(added) - 1
        if n_runs > settings.max_sweep_runs:
            raise field_error(
                f"stages.{position}.sweep",
                f"The sweeps of the job have {n_runs} runs; at most {settings.max_sweep_runs} are allowed "
                "(TUNESMITH_MAX_SWEEP_RUNS). Set sweep_max_runs to try fewer.",
            )
        stages += added
        positions += [position] * len(added)
    return ExpandedSpec(spec.model_copy(update={"stages": stages}) if n_runs else spec, positions)


class _Sweep:
    """One sweep: a stage, and the values to try."""

    def __init__(self, stage: ValidatedTrainingConfig, path: str, previous: str | None) -> None:
        """`path` is that of the stage in the job; `previous` is the name of the stage before it."""
        self._stage = stage
        self._path = path
        self._name = stage_name(stage)
        self._sweep = stage.sweep or {}
        excluded = {"sweep", "sweep_max_runs", "sweep_max_seconds"}
        self._values = stage.model_dump(mode="json", exclude_unset=True, exclude=excluded)
        self._values["needs"] = [previous] if previous is not None else []
        if stage.needs is not None:
            self._values["needs"] = stage.needs

    def expand(self, max_runs: int) -> list[AnyStage]:
        """Return the stages to try and the one that selects; raises UnprocessableContent."""
        self._check_values()
        n_all = math.prod(len(values) for values in self._sweep.values())
        allowed = min(max_runs, MAX_NEEDS)
        n_runs = min(n_all, self._stage.sweep_max_runs or n_all)
        if n_runs > allowed:
            message = (
                f"The sweep has {n_runs} runs; at most {allowed} are allowed (TUNESMITH_MAX_SWEEP_RUNS). Set "
                "sweep_max_runs to try a sample of its combinations."
            )
            raise field_error(f"{self._path}.sweep", message)
        combinations = [self._combine(chosen) for chosen in self._choose(n_all, n_runs)]
        if len(f"{self._name}-{n_runs}") > 63:
            raise field_error(f"{self._path}.name", "Shorten the name: the runs of the sweep add a number.")
        tries = [self._make_try(number, values) for number, values in enumerate(combinations, start=1)]
        named = [
            SweepTry.model_validate({"stage": config.name, "values": values})
            for config, values in zip(tries, combinations, strict=True)
        ]
        names = [each.stage for each in named]
        selecting = SelectConfig(name=self._name, needs=names, tries=named, combinations=n_all)
        return [*tries, selecting]

    def _check_values(self) -> None:
        """Raise an error for each field that may not vary, and each value that is invalid by itself."""
        errors: list[tuple[str, str]] = []
        for field, values in self._sweep.items():
            path = f"{self._path}.sweep.{field}"
            if field not in list(SweptField):
                message = f"A sweep cannot vary {field}. It can vary: {', '.join(SweptField)}."
                errors.append((path, message))
                continue
            for index, value in enumerate(values):
                if any(value == other and type(value) is type(other) for other in values[:index]):
                    errors.append((f"{path}.{index}", f"{value!r} is listed twice."))
                elif (reason := self._explain_invalid({field: value})) is not None:
                    errors.append((f"{path}.{index}", reason))
        if errors:
            raise UnprocessableContent(
                f"{errors[0][0]}: {errors[0][1]}",
                fields=[{"field": path, "message": message} for path, message in errors],
            )

    def _choose(self, n_all: int, n_runs: int) -> Sequence[int]:
        """Return the numbers of the combinations to try: all, or a random sample in order."""
        if n_runs == n_all:
            return range(n_all)
        generator = random.Random(self._stage.seed)  # noqa: S311 - nothing secret depends on it.
        return sorted(generator.sample(range(n_all), n_runs))

    def _combine(self, number: int) -> Values:
        """Return a combination by its number; the last field varies fastest."""
        values: Values = {}
        for field, choices in reversed(self._sweep.items()):
            number, index = divmod(number, len(choices))
            values[field] = choices[index]
        return {field: values[field] for field in self._sweep}

    def _explain_invalid(self, values: Values) -> str | None:
        try:
            parse_stage(self._with_values(values))
        except ValidationError as error:
            return "; ".join(each["msg"] for each in error.errors(include_url=False))
        return None

    def _make_try(self, number: int, values: Values) -> AnyStage:
        name = f"{self._name}-{number}"
        try:
            config = parse_stage({**self._with_values(values), "name": name})
        except ValidationError as error:
            found = ", ".join(f"{field} {value}" for field, value in values.items())
            message = "; ".join(each["msg"] for each in error.errors(include_url=False))
            raise field_error(f"{self._path}.sweep", f"With {found}: {message}") from error
        return config.model_copy(update={"limits": self._limit_share()})

    def _limit_share(self) -> StageLimits | None:
        """Return the limits of one run: its share of the time of all, unless the stage's limit is lower."""
        total = self._stage.sweep_max_seconds
        if total is None:
            return self._stage.limits
        n_all = math.prod(len(values) for values in self._sweep.values())
        share = total / min(n_all, self._stage.sweep_max_runs or n_all)
        limits = self._stage.limits or StageLimits()
        lower = min(share, limits.max_seconds) if limits.max_seconds is not None else share
        return limits.model_copy(update={"max_seconds": lower})

    def _with_values(self, values: Values) -> dict[str, Any]:
        """Return the stage's fields with the values of one run, and a micro-batch that suits all runs.

        The mean of the losses of validation batches depends on their size, which is that of the micro-batch.
        """
        fields = deepcopy(self._values)
        for field, value in values.items():
            *parents, last = field.split(".")
            target = fields
            for parent in parents:
                target = target.setdefault(parent, {})
            target[last] = value
        given = self._sweep.get(SweptField.batch_size, [])
        sizes = [size for size in given if type(size) is int and size > 0]
        if sizes:
            per_device = [size // self._stage.processes for size in sizes]
            fields["micro_batch_size"] = math.gcd(self._stage.micro_batch_size or 1, *per_device) or 1
            if SweptField.batch_size not in values:
                fields["batch_size"] = sizes[0]
        return fields


def list_select_errors(
    select: SelectConfig, path: str, earlier: Sequence[ResolvedStage], upstream: frozenset[str]
) -> Iterator[UnprocessableContent]:
    """Yield an error for each try that cannot be compared with the first one by its validation loss."""
    stages = {stage.name: stage.config for stage in earlier if stage.name in upstream}
    first: Mapping[str, Any] | None = None
    for position, each in enumerate(select.tries):
        field = f"{path}.tries.{position}"
        config = stages.get(each.stage)
        if each.outcome is not None:
            yield field_error(f"{field}.outcome", "Omit this field: the worker writes it.")
        if not isinstance(config, ValidatedTrainingConfig):
            names = ", ".join(stages) or "none"
            message = f"It needs no training stage with validation called {each.stage!r}. It needs: {names}."
            yield field_error(f"{field}.stage", message)
            continue
        if config.validation_dataset is None or not config.keep_best:
            message = f"{each.stage!r} needs a validation_dataset, and keep_best: true."
            yield field_error(f"{field}.stage", message)
        fixed = _fixed_fields(config)
        first = fixed if first is None else first
        if changed := [name for name, value in fixed.items() if first.get(name) != value]:
            message = (
                f"{each.stage!r} differs from {select.tries[0].stage!r} in {', '.join(changed)}: their "
                "validation losses cannot be compared."
            )
            yield field_error(f"{field}.stage", message)


def _fixed_fields(config: ValidatedTrainingConfig) -> dict[str, Any]:
    """Return the fields that all tries of a sweep share."""
    own = {"name", "needs", "when", "queue", "limits", "preset"}
    fields: dict[str, Any] = config.model_dump(mode="json", exclude=own)
    for field in SweptField:
        *parents, last = field.split(".")
        target = fields
        for parent in parents:
            target = target[parent]
        target.pop(last, None)
    return fields
