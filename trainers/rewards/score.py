"""Weighted total of several rewards for a completion, with the value and the reason of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from trainers.configs.rewards import (
    BleuReward,
    ChrfReward,
    CorrectnessReward,
    FormatReward,
    GraderReward,
    LengthReward,
    LengthUnit,
    Reward,
    StepsReward,
    reward_name,
)
from trainers.metrics.maths.final_answer import find_answer, judge_answer
from trainers.rewards.answer_form import find_form_fault
from trainers.rewards.equations import count_true_equations


@dataclass(frozen=True)
class RewardResult:
    """The weighted total for a completion, and by name each unweighted value and its reason.

    `answer` and `reference` are the final answers as written in the texts, or None if there is none or no
    reward reads them.
    """

    total: float
    parts: dict[str, float]
    answer: str | None
    reference: str | None
    reasons: dict[str, str]


class RewardPart(NamedTuple):
    """Unweighted value of one reward, its reason as a sentence, and the final answers it read."""

    value: float
    reason: str
    answer: str | None = None
    reference: str | None = None


def score_completion(
    rewards: Sequence[Reward],
    completion: str,
    reference: str | None = None,
    tokens: int | None = None,
    item: Mapping[str, Any] | None = None,
) -> RewardResult:
    """Score a completion; raises ValueError if a reward needs a reference or token count that is missing.

    `item` is the row that graders read.
    """
    parts = {
        reward_name(reward): score_reward(reward, completion, reference, tokens, item) for reward in rewards
    }
    weights = {reward_name(reward): reward.weight for reward in rewards}
    return RewardResult(
        total=sum(weights[name] * part.value for name, part in parts.items()),
        parts={name: part.value for name, part in parts.items()},
        answer=next((part.answer for part in parts.values() if part.answer is not None), None),
        reference=next((part.reference for part in parts.values() if part.reference is not None), None),
        reasons={name: part.reason for name, part in parts.items()},
    )


def find_references_without_answer(references: Sequence[str]) -> list[int]:
    """Return the indices of references without a final answer, which no completion can equal."""
    return [i for i, reference in enumerate(references) if find_answer(reference).number is None]


def score_reward(
    reward: Reward,
    completion: str,
    reference: str | None,
    tokens: int | None,
    item: Mapping[str, Any] | None = None,
) -> RewardPart:
    """Return the value of one reward; raises ValueError if a reference or token count is missing."""
    match reward:
        case CorrectnessReward():
            return _correctness(reward, completion, _require_reference(reference, reward))
        case FormatReward():
            fault = find_form_fault(completion, reward.form)
            return RewardPart(0.0 if fault else 1.0, fault or "The final answer has the required form.")
        case LengthReward():
            return _length(reward, completion, tokens)
        case StepsReward():
            return _steps(completion)
        case ChrfReward() | BleuReward():
            return _translation(reward, completion, _require_reference(reference, reward))
        case GraderReward():
            return _grade(reward, completion, item or {})


def graded_part(reward: GraderReward, score: float | None, reason: str) -> RewardPart:
    """Return the value of a grader's score, the lowest one if there is none."""
    if score is None:
        return RewardPart(reward.grader.worst_score, f"There is no score: {reason}.")
    return RewardPart(score, reason or f"The score of {reward.grader.name} is {score:g}.")


def _grade(reward: GraderReward, completion: str, item: Mapping[str, Any]) -> RewardPart:
    from trainers.graders.grade import grade
    from trainers.graders.result import Sample

    result = grade(reward.grader, item, Sample(completion))
    return graded_part(reward, result.score, result.reason)


def _require_reference(reference: str | None, reward: Reward) -> str:
    if reference is None:
        raise ValueError(f"The reward {reward_name(reward)!r} needs a reference: add one to each row.")
    return reference


def _correctness(reward: CorrectnessReward, completion: str, reference: str) -> RewardPart:
    absolute = Fraction(str(reward.absolute_tolerance))
    relative = Fraction(str(reward.relative_tolerance))
    found = judge_answer(completion, reference, absolute, relative)
    answer = None if found.answer is None else found.answer.text
    expected = None if found.reference is None else found.reference.text
    return RewardPart(float(found.correct), found.reason, answer, expected)


def _length(reward: LengthReward, completion: str, tokens: int | None) -> RewardPart:
    length = len(completion) if reward.unit is LengthUnit.characters else tokens
    if length is None:
        raise ValueError(
            f"The reward {reward_name(reward)!r} needs token counts: pass them, or set its unit to "
            "characters."
        )
    over = max(0, length - reward.limit)
    return RewardPart(-min(1.0, over / reward.span), f"{length} {reward.unit}, {over} over the limit.")


def _steps(completion: str) -> RewardPart:
    true, count = count_true_equations(completion)
    return RewardPart(true / count if count else 0.0, f"{true} of {count} equations are true.")


def _translation(reward: ChrfReward | BleuReward, completion: str, reference: str) -> RewardPart:
    # sacrebleu takes 0.2 s to import, which evaluation and the maths rewards need not spend.
    from trainers.metrics.translation.sentence_scores import sentence_bleu, sentence_chrf

    if isinstance(reward, ChrfReward):
        value = sentence_chrf(completion, reference, reward.word_order)
        return RewardPart(value, f"{'chrF++' if reward.word_order else 'chrF'} {100 * value:.1f}.")
    value = sentence_bleu(completion, reference, reward.language)
    return RewardPart(value, f"BLEU {100 * value:.1f}.")
