"""Configs of the rewards by which GRPO and preflight judge completions, told apart by `kind`."""

from collections import Counter
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from trainers.configs.base import Config, StageName


class AnswerForm(StrEnum):
    """How a final answer is to be written."""

    hashes = "hashes"
    boxed = "boxed"
    sentence = "sentence"


class LengthUnit(StrEnum):
    """What a completion's length is counted in."""

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
    """Fields that every reward has."""

    kind: str
    name: StageName | None = Field(
        None, description="Name in logs and results; by default its kind. Names differ within one list."
    )
    weight: float = Field(
        1.0, gt=0, le=100, allow_inf_nan=False, description="Factor of its value in the total."
    )


class CorrectnessReward(RewardConfig):
    """1 if the final answer is the reference's number, else 0."""

    kind: Literal["correctness"] = Field("correctness", description="Kind of the reward.")
    absolute_tolerance: float = Field(
        0.0, ge=0, le=1e6, allow_inf_nan=False, description="Difference that still counts as equal."
    )
    relative_tolerance: float = Field(
        0.0, ge=0, lt=1, description="Difference that still counts as equal, as a share of the reference."
    )


class FormatReward(RewardConfig):
    """1 if the final answer is written once, in the asked form, with nothing after it, else 0."""

    kind: Literal["format"] = Field("format", description="Kind of the reward.")
    form: AnswerForm = Field(
        AnswerForm.hashes,
        description=(
            r"`hashes` is a last line `#### 8`, `boxed` is `\boxed{8}`, and `sentence` is `The answer is 8.`"
        ),
    )


class LengthReward(RewardConfig):
    """0 up to a limit, then falling in a straight line to -1 (soft overlong punishment, arXiv:2503.14476)."""

    kind: Literal["length"] = Field("length", description="Kind of the reward.")
    unit: LengthUnit = LengthUnit.tokens
    limit: int = Field(ge=1, le=10_000_000, description="Characters or tokens without a penalty.")
    span: int = Field(
        ge=1, le=10_000_000, description="Characters or tokens beyond the limit at which the value is -1."
    )


class StepsReward(RewardConfig):
    """The share of a solution's own equations that hold; 0 if it has none."""

    kind: Literal["steps"] = Field("steps", description="Kind of the reward.")


class ChrfReward(RewardConfig):
    """Sentence chrF against the reference, from 0 to 1 (Popović, 2015, W15-3049)."""

    kind: Literal["chrf"] = Field("chrf", description="Kind of the reward.")
    word_order: Literal[0, 2] = Field(0, description="0 for chrF, 2 for chrF++, which also counts words.")


class BleuReward(RewardConfig):
    """Sentence BLEU against the reference with exponential smoothing, from 0 to 1."""

    kind: Literal["bleu"] = Field("bleu", description="Kind of the reward.")
    language: TargetLanguage = Field(
        TargetLanguage.en,
        description=(
            "Language of the completions. `ko` and `ja` are split into characters and `zh` into Chinese "
            "characters, all others by the `13a` rules; character BLEU is no published figure's equal."
        ),
    )


Reward = Annotated[
    CorrectnessReward | FormatReward | LengthReward | StepsReward | ChrfReward | BleuReward,
    Field(discriminator="kind"),
]


def reward_name(reward: RewardConfig) -> str:
    """The name of a reward in logs and results."""
    return reward.name or reward.kind


def _named_apart(rewards: list[Reward]) -> list[Reward]:
    twice = [name for name, count in Counter(map(reward_name, rewards)).items() if count > 1]
    if twice:
        raise ValueError(f"two rewards are called {twice[0]!r}; give one of them another name")
    return rewards


Rewards = Annotated[list[Reward], Field(min_length=1, max_length=16), AfterValidator(_named_apart)]
