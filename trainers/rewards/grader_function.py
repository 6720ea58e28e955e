"""A grader as a reward function for TRL, with an account of the completions that have no score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from trainers.configs.rewards import GraderReward, reward_name
from trainers.graders.grade import GraderRunner
from trainers.graders.result import GradeResult, Sample
from trainers.metrics.judge.requests import JudgeFailed
from trainers.rewards.completion_texts import Completion, completion_text, completion_tool_calls
from trainers.rewards.score import graded_part

# A share of fewer completions is no measure.
MIN_GRADED = 100


@dataclass
class GraderCounts:
    """What a grader of a training run has done."""

    graded: int = 0
    unsuitable: int = 0
    """Completions that lack what the grader reads of them."""
    errors: int = 0
    """Completions without a score for another reason."""
    last_error: str = ""


class GraderFunction:
    """TRL's reward function of a grader."""

    def __init__(self, reward: GraderReward) -> None:
        # TRL logs the rewards under this name.
        self.__name__ = reward_name(reward)
        self.counts = GraderCounts()
        self._reward = reward

    def __call__(
        self, completions: Sequence[Completion], item: Sequence[Mapping[str, Any]] | None = None, **_: Any
    ) -> list[float]:
        """Return the score of each completion; raises JudgeFailed for too many without one."""
        items = [{}] * len(completions) if item is None else item
        samples = [Sample(completion_text(one), completion_tool_calls(one)) for one in completions]
        pairs = list(zip(items, samples, strict=True))
        results = list(self._runner.grade_all(pairs, self._reward.concurrency))
        for result in results:
            self._count(result)
        counts = self.counts
        if counts.errors > self._reward.max_error_share * max(counts.graded, MIN_GRADED):
            raise JudgeFailed(
                f"{counts.errors} of {counts.graded} completions have no score by the reward "
                f"{self.__name__!r}, more than `max_error_share` {self._reward.max_error_share:g} allows. "
                f"The last reason: {counts.last_error}",
                "Correct the grader, the rows or the endpoint, or raise max_error_share. A retry resumes "
                "from the last checkpoint.",
            )
        return [graded_part(self._reward, result.score, result.reason).value for result in results]

    @cached_property
    def _runner(self) -> GraderRunner:
        return GraderRunner(self._reward.grader, self._reward.concurrency)

    def _count(self, result: GradeResult) -> None:
        self.counts.graded += 1
        if result.is_completion_fault:
            self.counts.unsuitable += 1
        elif result.score is None:
            self.counts.errors += 1
            self.counts.last_error = result.reason
