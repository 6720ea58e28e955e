"""Configs of rewards, which score completions in GRPO, in preflight and for preference pairs."""

from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from trainers.configs.base import MAX_COUNT, Config, StageName
from trainers.configs.engines import join_capabilities
from trainers.configs.graders import Grader, GraderConfig, grader_capability
from trainers.configs.parsing.tagged_objects import expect_object


class AnswerForm(StrEnum):
    """Form in which a final answer must be written."""

    hashes = "hashes"
    boxed = "boxed"
    sentence = "sentence"


class LengthUnit(StrEnum):
    """Unit in which the length of a completion is counted."""

    characters = "characters"
    tokens = "tokens"


class TargetLanguage(StrEnum):
    """Language of the translations, which decides how BLEU splits words."""

    en = "en"
    ko = "ko"
    ja = "ja"
    zh = "zh"
    other = "other"


class RewardConfig(Config):
    """Fields of every reward."""

    kind: str = Field(description="Kind of reward.")
    name: StageName | None = Field(
        None, description="Name in logs and results, unique in the list. Defaults to the kind of reward."
    )
    weight: float = Field(1.0, gt=0, le=100, description="Factor of the value in the total.")


class CorrectnessReward(RewardConfig):
    """1 if the final answer equals the number in the reference, else 0."""

    kind: Literal["correctness"] = Field("correctness", description="Kind of reward.")
    absolute_tolerance: float = Field(
        0.0, ge=0, le=1e6, description="Largest difference that counts as equal."
    )
    relative_tolerance: float = Field(
        0.0, ge=0, lt=1, description="Largest difference that counts as equal, as a share of the reference."
    )


class FormatReward(RewardConfig):
    """1 if the final answer occurs once, in the required form, with nothing after it, else 0."""

    kind: Literal["format"] = Field("format", description="Kind of reward.")
    form: AnswerForm = Field(
        AnswerForm.hashes,
        description=(
            r"`hashes` is a last line `#### 8`, `boxed` is `\boxed{8}`, and `sentence` is `The answer is 8.`"
        ),
    )


class LengthReward(RewardConfig):
    """0 up to a limit, then a linear decrease to -1 (soft overlong punishment, arXiv:2503.14476)."""

    kind: Literal["length"] = Field("length", description="Kind of reward.")
    unit: LengthUnit = Field(LengthUnit.tokens, description="Unit of `limit` and `span`.")
    limit: int = Field(ge=1, le=MAX_COUNT, description="Length up to which there is no penalty.")
    span: int = Field(ge=1, le=MAX_COUNT, description="Length beyond the limit at which the value is -1.")


class StepsReward(RewardConfig):
    """The share of the equations in a solution that are true; 0 if it contains none."""

    kind: Literal["steps"] = Field("steps", description="Kind of reward.")


class ChrfReward(RewardConfig):
    """Sentence chrF against the reference, from 0 to 1 (Popović, 2015, W15-3049)."""

    kind: Literal["chrf"] = Field("chrf", description="Kind of reward.")
    word_order: Literal[0, 2] = Field(0, description="0 for chrF, 2 for chrF++, which also counts words.")


class BleuReward(RewardConfig):
    """Sentence BLEU against the reference with exponential smoothing, from 0 to 1."""

    kind: Literal["bleu"] = Field("bleu", description="Kind of reward.")
    language: TargetLanguage = Field(
        TargetLanguage.en,
        description=(
            "Language of the completions. `ko` and `ja` are split into characters, `zh` into Chinese "
            "characters, all others by the `13a` rules. BLEU over characters does not compare with published "
            "scores."
        ),
    )


class GraderReward(RewardConfig):
    """The score of a grader of OpenAI's API, which reads the row's fields as `item`."""

    kind: Literal["grader"] = Field("grader", description="Kind of reward.")
    grader: Grader = Field(description="The grader, with the fields of OpenAI's API.")
    max_error_share: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Share of the completions, counted over at least 100, that may have no score because a "
        "model or program failed or a formula is undefined; above it training fails. Such a completion has "
        "the grader's lowest score, and so has one that lacks what the grader reads of it, such as JSON.",
    )
    concurrency: int = Field(8, ge=1, le=128, description="Completions that are graded at once.")


Reward = Annotated[
    CorrectnessReward | FormatReward | LengthReward | StepsReward | ChrfReward | BleuReward | GraderReward,
    Field(discriminator="kind"),
    expect_object("kind", "correctness", "format", "length", "steps", "chrf", "bleu", "grader"),
]
NEEDS_REFERENCE = (CorrectnessReward, ChrfReward, BleuReward)
"""Rewards that compare a completion with the row's own."""


def reward_name(reward: RewardConfig) -> str:
    """Return the name of a reward in logs and results."""
    return reward.name or reward.kind


def list_reward_graders(rewards: Sequence[RewardConfig]) -> list[GraderConfig]:
    """Return the graders among the rewards."""
    return [reward.grader for reward in rewards if isinstance(reward, GraderReward)]


def rewards_capability(rewards: Sequence[RewardConfig]) -> str | None:
    """Return what a worker must have to compute the rewards."""
    return join_capabilities([grader_capability(grader) for grader in list_reward_graders(rewards)])


def _check_names(rewards: list[Reward]) -> list[Reward]:
    repeated = [name for name, count in Counter(map(reward_name, rewards)).items() if count > 1]
    if repeated:
        raise ValueError(f"several rewards have the name {repeated[0]!r}; set a different `name` on each")
    return rewards


Rewards = Annotated[list[Reward], Field(min_length=1, max_length=16), AfterValidator(_check_names)]
