"""Mean score of a grader, or the share of the responses that pass it."""

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from trainers.configs.graders import ModelGraderConfig, PythonGrader, find_variables, list_graders
from trainers.configs.graders.templates import VariableMissing
from trainers.configs.metrics.grader import GraderScore
from trainers.graders.grade import GraderRunner, check_grader_host, grader_signature
from trainers.graders.result import GradeResult, Sample, join_usage
from trainers.metrics.judge.requests import JudgeFailed
from trainers.metrics.metric import EvaluatedRow, MetricValues, ModelContext
from trainers.runtime import run_dir as files

logger = logging.getLogger("trainers")

# Cheap grades are computed again after an interruption.
_PAID = (ModelGraderConfig, PythonGrader)


class GraderMetric:
    """The scores of a grader; a response that the engine rejected is graded as an empty text."""

    def __init__(self, config: GraderScore) -> None:
        self._config = config

    def check_row(self, row: EvaluatedRow) -> str | None:
        """Return that the row lacks a field which a template of the grader names."""
        for variable in find_variables(self._config.grader):
            if variable.namespace == "item":
                try:
                    variable.find({"item": _item(self._config, row)})
                except VariableMissing as error:
                    return f"lacks a field of the grader: {error}"
        return None

    def check_host(self, rows: Sequence[EvaluatedRow]) -> None:
        """Raise a ProgramError if this host lacks a package or the sandbox that the grader needs."""
        check_grader_host(self._config.grader)

    def score(self, rows: Sequence[EvaluatedRow]) -> MetricValues:
        """Score as `score_model`, and keep no grade."""
        return self.score_model(rows, ModelContext("model"))

    def score_model(self, rows: Sequence[EvaluatedRow], context: ModelContext) -> MetricValues:
        """Grade each row's first response; raises JudgeFailed."""
        config = self._config
        grades = list(_grade(config, rows, context))
        values = [_value(config, grade) for grade in grades]
        given = [value for value in values if value is not None]
        return MetricValues(
            sum(given) / len(given) if given else _lowest(config),
            values,
            _signature(config),
            is_share=config.scale.is_share,
            details=_describe(grades),
            row_details=[_describe_row(grade) for grade in grades],
        )


def _grade(
    config: GraderScore, rows: Sequence[EvaluatedRow], context: ModelContext
) -> Iterator[dict[str, Any]]:
    """Yield the grade of each row in their order, from the file of an earlier attempt where it has one.

    Raises JudgeFailed as soon as too many rows have no score.
    """
    path = None if context.folder is None or not _is_paid(config) else _grades_file(config, context.folder)
    pairs = [(_item(config, row), Sample(row.response, row.tool_calls)) for row in rows]
    keys = [_key(config, context.role, row) for row in rows]
    known = {} if path is None else {line["key"]: line for line in files.read_lines(path)}
    known = {key: grade for key, grade in known.items() if grade["score"] is not None}
    missing = [pair for key, pair in zip(keys, pairs, strict=True) if key not in known]
    max_errors = math.floor(config.max_error_share * len(rows))
    if config.max_error_share < 1:
        # Without a value there is no mean.
        max_errors = min(max_errors, len(rows) - 1)
    n_errors = 0
    with (
        closing(GraderRunner(config.grader, config.concurrency)) as runner,
        closing(runner.grade_all(missing, config.concurrency)) as graded,
    ):
        for row, key in zip(rows, keys, strict=True):
            if key in known:
                yield known[key]
                continue
            result = next(graded)
            grade = result.as_dict()
            if result.is_completion_fault:
                grade |= {"score": config.grader.worst_score, "passed": False}
            elif result.score is None:
                logger.warning("%s: row %d has no score: %s", config.label, row.row, result.reason)
                n_errors += 1
            if path is not None:
                files.append_line(path, {"role": context.role, "row": row.row, "key": key, **grade})
            if n_errors > max_errors:
                raise _too_many_errors(config, n_errors, len(rows), result.reason)
            yield grade


def _item(config: GraderScore, row: EvaluatedRow) -> Mapping[str, Any]:
    if config.item is None:
        return row.fields
    value = row.fields.get(config.item)
    return value if isinstance(value, Mapping) else {}


def _is_paid(config: GraderScore) -> bool:
    return any(isinstance(one, _PAID) for one in list_graders(config.grader))


def _grades_file(config: GraderScore, folder: Path) -> Path:
    # A checkpoint contains the files with this ending.
    return folder / f"{config.label}.judgements.jsonl"


def _key(config: GraderScore, role: str, row: EvaluatedRow) -> str:
    """Return the hash of all that a grade depends on, and of its place."""
    texts = [row.fields, row.response, list(row.tool_calls)]
    content = [grader_signature(config.grader), role, row.row, texts]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _value(config: GraderScore, grade: Mapping[str, Any]) -> float | None:
    if grade["score"] is None:
        return None
    return float(grade["score"] if config.report == "score" else grade["passed"])


def _lowest(config: GraderScore) -> float:
    """Return the value of a metric without any score, which is allowed where every row may lack one."""
    return config.grader.worst_score if config.report == "score" else 0.0


def _signature(config: GraderScore) -> str:
    threshold = f"|threshold:{config.grader.threshold:g}" if config.report == "passed" else ""
    return f"grader|{grader_signature(config.grader)}|report:{config.report}{threshold}"


def _describe(grades: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the counts, and the tokens by model."""
    usage = join_usage([GradeResult.read_usage(grade) for grade in grades])
    passed = [grade["passed"] for grade in grades]
    return {
        "passed": passed.count(True),
        "failed": passed.count(False),
        "errors": passed.count(None),
        "error_kinds": dict(Counter(name for grade in grades for name in _error_names(grade))),
        "labels": dict(Counter(grade["label"] for grade in grades if grade["label"] is not None)),
        "usage": {model: vars(tokens) for model, tokens in usage.items()},
    }


def _describe_row(grade: Mapping[str, Any]) -> dict[str, Any]:
    row = {"passed": grade["passed"]}
    optional = {
        "label": grade["label"],
        "reason": grade["reason"],
        "errors": _error_names(grade),
        "sub_scores": grade["sub_scores"],
    }
    return row | {name: value for name, value in optional.items() if value}


def _error_names(grade: Mapping[str, Any]) -> list[str]:
    return [name for name, value in grade["errors"].items() if value is True]


def _too_many_errors(config: GraderScore, n_errors: int, n_rows: int, reason: str) -> JudgeFailed:
    count = "1 row has" if n_errors == 1 else f"{n_errors} rows have"
    return JudgeFailed(
        f"{count} no score by the grader {config.label} so far, of {n_rows}: more than `max_error_share` "
        f"{config.max_error_share:g} allows. The last reason: {reason}",
        "Correct the grader, the rows or the endpoint, or raise max_error_share. The log names each row.",
    )
