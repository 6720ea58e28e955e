"""Mean score and mean preference of a judge model."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from trainers.configs.metrics.judge import REFERENCE, JudgeConfig, JudgePreference, JudgeScore
from trainers.metrics.judge.judgements import JudgeRequest, JudgeVerdict, judge_all
from trainers.metrics.judge.prompts import (
    Preferred,
    preference_messages,
    prompt_hash,
    read_preference,
    read_score,
    score_messages,
)
from trainers.metrics.metric import EvaluatedRow, MetricValues, ModelContext, missing_reference
from trainers.metrics.signatures import short_hash
from trainers.runtime.errors import ConfigInvalid

_PREFERENCES = {Preferred.a: 1.0, Preferred.tie: 0.5, Preferred.b: 0.0}


class JudgeScoreMetric:
    """Mean score of the responses by a judge model.

    A row that the engine rejected has no response to judge and gets the lowest score.
    """

    def __init__(self, config: JudgeScore) -> None:
        self._config = config

    def check_row(self, row: EvaluatedRow) -> str | None:
        """Return that the reference is empty, if the judge is to see it."""
        return missing_reference(row) if self._config.show_reference else None

    def score(self, rows: Sequence[EvaluatedRow]) -> MetricValues:
        """Score as `score_model`, and keep no answer."""
        return self.score_model(rows, ModelContext("model"))

    def score_model(self, rows: Sequence[EvaluatedRow], context: ModelContext) -> MetricValues:
        """Ask for the score of each row's first response; raises JudgeFailed."""
        config = self._config
        judged = [position for position, row in enumerate(rows) if row.responses[0] is not None]
        requests = [
            JudgeRequest(context.role, rows[position].row, score_messages(config, rows[position]))
            for position in judged
        ]
        max_errors = math.floor(config.max_error_share * len(rows))
        answers = judge_all(config, requests, lambda text: read_score(config, text), context, max_errors)
        values: list[float | None] = [float(config.lowest)] * len(rows)
        for position, answer in zip(judged, answers, strict=True):
            values[position] = answer.value
        details = _describe(answers) | {
            "errors": values.count(None),
            "without_response": len(rows) - len(judged),
            "scores": dict(sorted(Counter(str(answer.value) for answer in answers).items())),
        }
        return MetricValues(
            _mean(config, values),
            values,
            f"{_signature(config)}|scale:{config.lowest}-{config.highest}",
            details=details,
        )


class JudgePreferenceMetric:
    """Mean preference for a model's responses over the reference or another model, in both orders.

    Judges prefer the first response more often than the second (Zheng et al. 2023, arXiv:2306.05685), so each
    pair is judged twice and the value is the mean. The agreement of the two orders says how far to trust it.
    """

    def __init__(self, config: JudgePreference) -> None:
        self._config = config

    def check_row(self, row: EvaluatedRow) -> str | None:
        """Return that the reference is empty, if it is compared with or shown."""
        uses_reference = self._config.against == REFERENCE or self._config.show_reference
        return missing_reference(row) if uses_reference else None

    def score(self, rows: Sequence[EvaluatedRow]) -> MetricValues:
        """Score as `score_model`, and keep no answer."""
        return self.score_model(rows, ModelContext("model"))

    def score_model(self, rows: Sequence[EvaluatedRow], context: ModelContext) -> MetricValues:
        """Ask for a preference of each row in both orders; raises JudgeFailed."""
        config = self._config
        if context.role == config.against:
            # Compared with itself, a model wins half of the rows; nothing needs to be asked.
            return MetricValues(0.5, [0.5] * len(rows), _signature(config), details={"errors": 0})
        others = [self._find_other(row) for row in rows]
        values: list[float | None] = [
            _value_without_response(row.responses[0], other) for row, other in zip(rows, others, strict=True)
        ]
        judged = [position for position, value in enumerate(values) if value is None]
        requests = [
            request
            for position in judged
            for request in self._requests(rows[position], str(others[position]), context.role)
        ]
        max_errors = math.floor(config.max_error_share * len(rows))
        answers = judge_all(config, requests, read_preference, context, max_errors)
        # For the second order the places are exchanged, and so is the value.
        pairs = [
            (_value_of(first), _exchange(_value_of(second)))
            for first, second in zip(answers[::2], answers[1::2], strict=True)
        ]
        for position, (first, second) in zip(judged, pairs, strict=True):
            values[position] = None if first is None or second is None else (first + second) / 2
        details = _describe(answers) | {
            "errors": values.count(None),
            "without_response": len(rows) - len(judged),
            **_count_agreement(pairs, answers),
        }
        return MetricValues(_mean(config, values), values, _signature(config), details=details)

    def _find_other(self, row: EvaluatedRow) -> str | None:
        if self._config.against == REFERENCE:
            return row.reference
        if self._config.against not in row.others:
            raise ConfigInvalid(
                f"{self._config.label} compares with {self._config.against!r}, which is not a model of this "
                f"evaluation; there are: {', '.join(row.others) or 'no others'}.",
                "Set `against` to one of them, or to `reference`.",
            )
        return row.others[self._config.against][0]

    def _requests(self, row: EvaluatedRow, other: str, role: str) -> list[JudgeRequest]:
        return [
            JudgeRequest(role, row.row, preference_messages(self._config, row, *texts), order)
            for order, texts in ((1, (row.response, other)), (2, (other, row.response)))
        ]


def _value_without_response(response: str | None, other: str | None) -> float | None:
    """Return the value of a row on which an engine rejected a request: only a response can win."""
    if response is not None and other is not None:
        return None
    return 0.5 if response is other else float(response is not None)


def _value_of(judgement: JudgeVerdict[Preferred]) -> float | None:
    return None if judgement.value is None else _PREFERENCES[judgement.value]


def _exchange(value: float | None) -> float | None:
    return None if value is None else 1 - value


def _count_agreement(
    pairs: Sequence[tuple[float | None, float | None]], answers: Sequence[JudgeVerdict[Preferred]]
) -> dict[str, Any]:
    whole = [pair for pair in pairs if None not in pair]
    decided = [answer.value for answer in answers if answer.value in (Preferred.a, Preferred.b)]
    n_agreeing = sum(first == second for first, second in whole)
    return {
        "order_agreement": n_agreeing / len(whole) if whole else None,
        "first_place_share": decided.count(Preferred.a) / len(decided) if decided else None,
        "wins_in_both_orders": whole.count((1.0, 1.0)),
        "losses_in_both_orders": whole.count((0.0, 0.0)),
        "ties_in_both_orders": whole.count((0.5, 0.5)),
    }


def _mean(config: JudgeConfig, values: Sequence[float | None]) -> float:
    given = [value for value in values if value is not None]
    if not given:
        raise ConfigInvalid(
            f"{config.label} has no judgement at all.", "Lower max_error_share, and read the judgements."
        )
    return sum(given) / len(given)


def _describe(answers: Sequence[JudgeVerdict[Any]]) -> dict[str, Any]:
    """Return which models the endpoint reports, and the tokens that the judgements took."""
    given = [judgement.answer for judgement in answers if judgement.answer is not None]
    return {
        "judge_models": sorted({answer.model for answer in given if answer.model}),
        "prompt_tokens": sum(answer.usage.get("prompt_tokens", 0) for answer in given),
        "completion_tokens": sum(answer.usage.get("completion_tokens", 0) for answer in given),
    }


def _signature(config: JudgeConfig) -> str:
    parts = {
        "judge": config.judge,
        "rubric": short_hash(config.rubric.strip()),
        "prompt": prompt_hash(),
        "reference": "shown" if config.show_reference else "hidden",
        "temperature": config.temperature,
    }
    if isinstance(config, JudgePreference):
        parts |= {"against": config.against, "orders": "both"}
    return "|".join([config.metric, *(f"{name}:{value}" for name, value in parts.items())])
