"""Recipes and filters of the `prepare` stage."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainers.configs.base import MAX_COUNT, Config, DatasetRef, NonEmpty, Seed
from trainers.configs.parsing.tagged_objects import expect_object
from trainers.configs.rewards import CorrectnessReward, Rewards
from trainers.data.recipes.gsm8k import Annotations
from trainers.data.recipes.translation import Direction

Similarity = Annotated[
    float, Field(gt=0, le=1, description="Share of common text from which two rows count as similar.")
]
System = Annotated[NonEmpty | None, Field(description="System message before each question.")]
_ANNOTATIONS = "Whether calculator annotations such as `<<48/2=24>>` are kept or stripped."


class TranslationRecipe(Config):
    """Chat rows from sentence pairs, in one or both directions, with several wordings of the request."""

    kind: Literal["translation"] = Field("translation", description="Kind of recipe.")
    directions: list[Direction] = Field(
        [Direction.ko_en, Direction.en_ko],
        min_length=1,
        max_length=2,
        description="Directions of translation; each produces one row per pair.",
    )
    wordings: int = Field(6, ge=1, le=6, description="Number of different wordings of the request.")
    check_language: bool = Field(
        True, description="Drop pairs whose sides are not Korean and English, judged by their script."
    )
    check_length: bool = Field(
        True, description="Drop pairs whose ratio of lengths is implausible for a translation."
    )
    check_alignment: bool = Field(
        True,
        description="Drop pairs whose sides cannot belong together, judged by length, numbers, names, "
        "phrases of the other language and repeated sides.",
    )
    seed: Seed = 0


class MathsSftRecipe(Config):
    """Chat rows with question, reasoning and `#### N`, from GSM8K and data sets like it."""

    kind: Literal["maths_sft"] = Field("maths_sft", description="Kind of recipe.")
    annotations: Annotations = Field(Annotations.stripped, description=_ANNOTATIONS)
    system: System = None


class MathsPromptsRecipe(Config):
    """Questions with their final answer alone, for GRPO."""

    kind: Literal["maths_prompts"] = Field("maths_prompts", description="Kind of recipe.")
    system: System = None


class MathsPairsRecipe(Config):
    """Preference pairs from several graded solutions of each problem."""

    kind: Literal["maths_pairs"] = Field("maths_pairs", description="Kind of recipe.")
    pairs_per_problem: int = Field(2, ge=1, le=1000, description="Maximum number of pairs per problem.")
    annotations: Annotations = Field(Annotations.stripped, description=_ANNOTATIONS)
    system: System = None
    seed: Seed = 0


class OnPolicyPairsRecipe(Config):
    """Preference pairs from the model's own completions, ranked by rewards."""

    kind: Literal["on_policy_pairs"] = Field("on_policy_pairs", description="Kind of recipe.")
    rewards: Rewards = Field(
        [CorrectnessReward()], description="Rewards whose weighted sum ranks the completions."
    )
    num_generations: int = Field(8, ge=2, le=1024, description="Completions sampled for each prompt.")
    pairs_per_prompt: int = Field(2, ge=1, le=1000, description="Maximum number of pairs per prompt.")
    margin: float = Field(
        0.5,
        gt=0,
        le=1000,
        description="Minimum difference of the rewards of a chosen and a rejected completion.",
    )
    temperature: float = Field(1.0, gt=0, le=10, description="Sampling temperature.")
    max_new_tokens: int = Field(256, ge=1, le=MAX_COUNT, description="Maximum tokens of a completion.")
    batch_size: int = Field(32, ge=1, le=MAX_COUNT, description="Prompts that are generated for at once.")
    max_rows: int | None = Field(
        None, ge=1, le=MAX_COUNT, description="Use the first rows only; null uses all."
    )
    seed: Seed = 0


Recipe = Annotated[
    TranslationRecipe | MathsSftRecipe | MathsPromptsRecipe | MathsPairsRecipe | OnPolicyPairsRecipe,
    Field(discriminator="kind"),
    expect_object("kind", "translation", "maths_sft", "maths_prompts", "maths_pairs", "on_policy_pairs"),
]


class LengthFilter(Config):
    """Keep rows whose length over all messages is within bounds; the tokenizer of `base` counts tokens."""

    kind: Literal["characters", "tokens"] = Field(description="Unit of the length.")
    minimum: int = Field(0, ge=0, le=MAX_COUNT, description="Minimum length, inclusive.")
    maximum: int | None = Field(
        None, ge=1, le=MAX_COUNT, description="Maximum length, inclusive; null is unlimited."
    )

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.maximum is not None and self.maximum < self.minimum:
            raise ValueError(f"maximum {self.maximum} is less than minimum {self.minimum}")
        return self


class DuplicatesFilter(Config):
    """Keep the first of several rows with equal content, compared as people read it."""

    kind: Literal["duplicates"] = Field("duplicates", description="Kind of filter.")


class NearDuplicatesFilter(Config):
    """Keep the first of several rows with similar text; word problems need a threshold near 1."""

    kind: Literal["near_duplicates"] = Field("near_duplicates", description="Kind of filter.")
    threshold: Similarity = 0.8


class HeldOutFilter(Config):
    """Drop rows whose prompt, as people read it, occurs in other datasets, such as the test set."""

    kind: Literal["held_out"] = Field("held_out", description="Kind of filter.")
    not_in: list[DatasetRef] = Field(
        min_length=1, max_length=20, description="Datasets whose prompts must not remain."
    )
    threshold: Similarity = 1.0


Filter = Annotated[
    LengthFilter | DuplicatesFilter | NearDuplicatesFilter | HeldOutFilter,
    Field(discriminator="kind"),
    expect_object("kind", "characters", "tokens", "duplicates", "near_duplicates", "held_out"),
]


class SplitSizes(Config):
    """Sizes of the held-out parts: below 1 a share of the rows, from 1 on a number of rows."""

    validation: float = Field(
        0, ge=0, le=MAX_COUNT, description="Size of the validation part, as a share or as a number of rows."
    )
    test: float = Field(
        0, ge=0, le=MAX_COUNT, description="Size of the test part, as a share or as a number of rows."
    )
    seed: Seed = 0
