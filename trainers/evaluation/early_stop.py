"""An evaluation that grows row by row, and ends as soon as the test of its `early_stop` has decided.

The rows are completed in a random order that does not depend on any response, batch after batch. After each,
the values of the batch are measured; the test may be looked at as often as somebody likes.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trainers.configs.stages.evaluate import MODEL, EvaluateConfig
from trainers.evaluation.response_log import ResponseLog
from trainers.evaluation.results import EarlyStopResult
from trainers.evaluation.scores import measure
from trainers.rendering.render import PromptCompletion
from trainers.statistics.sequential import GrowthDecision, decide_growth


@dataclass(frozen=True)
class GrownEvaluation:
    """The rows that were completed, in the order of the file, and the decision."""

    pairs: list[PromptCompletion]
    result: EarlyStopResult


def grow(
    config: EvaluateConfig,
    pairs: Sequence[PromptCompletion],
    log: ResponseLog,
    complete: Callable[[list[PromptCompletion]], None],
) -> GrownEvaluation | None:
    """Complete the rows until the test decides; return None if a model that it needs is completed later.

    `complete` adds the responses of all models whose engines are running. Resuming repeats the looks on the
    responses that exist, with the same decisions.
    """
    watch = _Watch(config, pairs, log)
    waits = bool(watch.roles & {*config.pending})
    done: list[PromptCompletion] = []
    for batch in watch.list_batches():
        complete(batch)
        done += batch
        if not waits and watch.decide(batch).outcome is not None:
            break
    if waits:
        return None
    result = watch.describe()
    if result.has_stopped:
        log.add_stop(result.n, config.early_stop_key)
    return GrownEvaluation(sorted(done, key=lambda pair: pair.row), result)


class _Watch:
    """The values of the rows so far, and the last decision on them."""

    def __init__(self, config: EvaluateConfig, pairs: Sequence[PromptCompletion], log: ResponseLog) -> None:
        assert config.early_stop is not None
        self._config, self._log, self._stop = config, log, config.early_stop
        self._order = random.Random(config.seed).sample(list(pairs), len(pairs))  # noqa: S311
        self._differences: list[float] = []
        self._n_done = 0
        self._decision = GrowthDecision(None, 1.0, 1.0)
        other = self._stop.against
        self.roles = {MODEL, other} if isinstance(other, str) else {MODEL}

    def list_batches(self) -> Iterator[list[PromptCompletion]]:
        """Yield the rows in the order of their completion, up to the next look."""
        size = self._stop.rows_per_look
        for start in range(0, len(self._order), size):
            yield self._order[start : start + size]

    def decide(self, batch: list[PromptCompletion]) -> GrowthDecision:
        """Measure the rows of a batch, and decide on all so far."""
        own, other = self._values(MODEL, batch), self._stop.against
        theirs = self._values(other, batch) if isinstance(other, str) else [other] * len(batch)
        metric = self._config.early_stop_metric
        sign = 1.0 if metric.scale.higher_is_better else -1.0
        values = zip(own, theirs, strict=True)
        self._differences += [sign * (a - b) for a, b in values if a is not None and b is not None]
        self._n_done += len(batch)
        self._decision = decide_growth(
            np.array(self._differences),
            len(self._order) - self._n_done,
            bound=self._config.early_stop_bound,
            margin=self._stop.margin,
        )
        return self._decision

    def describe(self) -> EarlyStopResult:
        """Return the last decision."""
        metric, decision = self._config.early_stop_metric, self._decision
        sign = 1.0 if metric.scale.higher_is_better else -1.0
        return EarlyStopResult(
            metric=metric.label,
            against=self._stop.against,
            margin=self._stop.margin,
            outcome=decision.outcome or "undecided",
            n=self._n_done,
            rows=len(self._order),
            difference=sign * float(np.mean(self._differences)) if self._differences else None,
            evidence=decision.evidence,
            counter_evidence=decision.counter_evidence,
            p_value=min(1.0, 1 / decision.evidence),
        )

    def _values(self, role: str, batch: list[PromptCompletion]) -> Sequence[float | None]:
        metric, numbers = self._config.early_stop_metric, [pair.row for pair in batch]
        responses = self._log.list_samples(role, numbers, self._config.samples)
        calls = self._log.list_tool_calls(role)
        return measure([metric], batch, responses, tool_calls=calls)[metric.label].row_values
