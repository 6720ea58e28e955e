"""Recipes and filters of the `prepare` stage: what becomes of the rows that it reads."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainers.configs.base import MAX_COUNT, Config, DatasetRef, NonEmpty
from trainers.configs.rewards import CorrectnessReward, Rewards
from trainers.data.recipes.gsm8k import Annotations
from trainers.data.recipes.translation import Direction

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Similarity = Annotated[
    float, Field(gt=0, le=1, description="Share of text in common from which two rows are alike.")
]
System = Annotated[NonEmpty | None, Field(description="System turn before each question.")]


class TranslationRecipe(Config):
    """Chat rows from sentence pairs, in both directions and several wordings of the request."""

    kind: Literal["translation"] = Field("translation", description="Kind of the recipe.")
    directions: list[Direction] = Field([Direction.ko_en, Direction.en_ko], min_length=1, max_length=2)
    wordings: int = Field(6, ge=1, le=6, description="How many wordings of the request are used.")
    check_language: bool = Field(True, description="Drop pairs whose sides are not Korean and English.")
    check_length: bool = Field(True, description="Drop pairs whose lengths cannot be those of translations.")
    seed: Seed = 0


class MathsSftRecipe(Config):
    """Chat rows of question, reasoning and `#### N`, from GSM8K and its kin."""

    kind: Literal["maths_sft"] = Field("maths_sft", description="Kind of the recipe.")
    annotations: Annotations = Field(Annotations.stripped, description="What becomes of `<<48/2=24>>`.")
    system: System = None


class MathsPromptsRecipe(Config):
    """Questions with the bare final answer, for GRPO."""

    kind: Literal["maths_prompts"] = Field("maths_prompts", description="Kind of the recipe.")
    system: System = None


class MathsPairsRecipe(Config):
    """Preference pairs from several solutions whose correctness is known."""

    kind: Literal["maths_pairs"] = Field("maths_pairs", description="Kind of the recipe.")
    pairs_per_problem: int = Field(2, ge=1, le=1000)
    annotations: Annotations = Field(Annotations.stripped, description="What becomes of `<<48/2=24>>`.")
    system: System = None
    seed: Seed = 0


class OnPolicyPairsRecipe(Config):
    """Preference pairs from the model's own answers, a better one against a worse one by the rewards."""

    kind: Literal["on_policy_pairs"] = Field("on_policy_pairs", description="Kind of the recipe.")
    rewards: Rewards = Field([CorrectnessReward()], description="What an answer is worth.")
    num_generations: int = Field(8, ge=2, le=1024, description="Answers sampled to each prompt.")
    pairs_per_prompt: int = Field(2, ge=1, le=1000)
    margin: float = Field(0.5, gt=0, le=1000, description="How much more the better answer must be worth.")
    temperature: float = Field(1.0, gt=0, le=10)
    max_new_tokens: int = Field(256, ge=1, le=MAX_COUNT)
    batch_size: int = Field(32, ge=1, le=MAX_COUNT, description="Prompts answered at once.")
    max_rows: int | None = Field(None, ge=1, le=MAX_COUNT, description="Only the first rows.")
    seed: Seed = 0


Recipe = Annotated[
    TranslationRecipe | MathsSftRecipe | MathsPromptsRecipe | MathsPairsRecipe | OnPolicyPairsRecipe,
    Field(discriminator="kind"),
]


class LengthFilter(Config):
    """Keep rows of a length, over all their turns; tokens are counted by the tokenizer of `base`."""

    kind: Literal["characters", "tokens"]
    minimum: int = Field(0, ge=0, le=MAX_COUNT)
    maximum: int | None = Field(None, ge=1, le=MAX_COUNT)

    @model_validator(mode="after")
    def _some_length_is_kept(self) -> Self:
        if self.maximum is not None and self.maximum < self.minimum:
            raise ValueError(f"maximum {self.maximum} is below minimum {self.minimum}")
        return self


class DuplicatesFilter(Config):
    """Keep the first of all rows that say the same."""

    kind: Literal["duplicates"] = Field("duplicates", description="Kind of the filter.")


class NearDuplicatesFilter(Config):
    """Keep the first of all rows whose texts are alike; word problems need a threshold near 1."""

    kind: Literal["near_duplicates"] = Field("near_duplicates", description="Kind of the filter.")
    threshold: Similarity = 0.8


class HeldOutFilter(Config):
    """Drop rows that ask what a row of other datasets asks, such as those of the test set."""

    kind: Literal["held_out"] = Field("held_out", description="Kind of the filter.")
    not_in: list[DatasetRef] = Field(min_length=1, max_length=20)
    threshold: Similarity = 1.0


Filter = Annotated[
    LengthFilter | DuplicatesFilter | NearDuplicatesFilter | HeldOutFilter, Field(discriminator="kind")
]


class SplitSizes(Config):
    """Held-out parts, as a share of the rows below 1 or as a number of rows."""

    validation: float = Field(0, ge=0, le=MAX_COUNT)
    test: float = Field(0, ge=0, le=MAX_COUNT)
    seed: Seed = 0
