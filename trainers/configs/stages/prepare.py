"""Config of the `prepare` stage: make datasets that are ready to train on, and preview their tokens."""

from typing import Literal, Self

from pydantic import Field, model_validator

from trainers.configs.base import MAX_COUNT, DatasetPart, DatasetRef, ModelRef, Queue, StageConfig
from trainers.configs.recipes import Filter, OnPolicyPairsRecipe, Recipe, SplitSizes, TranslationRecipe
from trainers.configs.rewards import rewards_capability
from trainers.configs.sources import Source
from trainers.configs.training import TemplateField
from trainers.data.convert import RowShape


class PrepareConfig(StageConfig):
    """Read, rewrite, filter, convert and split rows; with `base`, preview which tokens carry loss.

    Without any of `source`, `recipe`, `filters`, `convert_to` and `split` the stage only previews rows.
    """

    stage: Literal["prepare"] = Field("prepare", description="Kind of the stage.")
    base: ModelRef | None = Field(
        None,
        description="Model whose tokenizer and chat template render rows, and which generates completions "
        "for the recipe `on_policy_pairs`.",
    )
    template: TemplateField = None
    dataset: DatasetRef | None = Field(
        None,
        description="Id (`dataset_…`) or name of a dataset, or `{stage: <name>}` of an earlier `prepare` "
        "stage.",
    )
    source: Source | None = Field(
        None, description="Source of the rows, instead of a dataset of the registry."
    )
    recipe: Recipe | None = Field(None, description="How rows are rewritten; null keeps them as they are.")
    filters: list[Filter] = Field(
        default_factory=list, max_length=20, description="Filters of the rows, applied in this order."
    )
    convert_to: RowShape | None = Field(None, description="Shape to convert the rows to.")
    split: SplitSizes | None = Field(None, description="Sizes of the held-out parts; null makes none.")
    rows: int = Field(
        5, ge=1, le=100, description="Number of rows to preview, from the start of the dataset."
    )
    max_length: int = Field(
        1024,
        ge=8,
        le=MAX_COUNT,
        description="Maximum tokens of a row in the preview, as the training stage would truncate them.",
    )

    @property
    def capability(self) -> str | None:
        """What computes the rewards of the recipe."""
        recipe = self.recipe
        return rewards_capability(recipe.rewards) if isinstance(recipe, OnPolicyPairsRecipe) else None

    @property
    def makes_datasets(self) -> bool:
        """Whether the stage writes rows, rather than only previewing them."""
        return bool(self.source or self.recipe or self.filters or self.convert_to or self.split)

    @property
    def parts(self) -> list[DatasetPart]:
        if not self.makes_datasets:
            return []
        split = self.split or SplitSizes()
        held_out = {DatasetPart.validation: split.validation, DatasetPart.test: split.test}
        return [DatasetPart.train, *(part for part, size in held_out.items() if size)]

    @property
    def suitable_queues(self) -> tuple[Queue, ...]:
        """A CPU is enough, unless a model generates completions."""
        is_generating = isinstance(self.recipe, OnPolicyPairsRecipe)
        return (Queue.cuda, Queue.cpu) if is_generating else super().suitable_queues

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        if (self.dataset is None) == (self.source is None):
            raise ValueError("set either dataset or source")
        if not self.makes_datasets and self.base is None:
            raise ValueError(
                "the stage has nothing to do: set base to preview rows, or set a recipe, filters or a split"
            )
        if self.base is None and isinstance(self.recipe, OnPolicyPairsRecipe):
            raise ValueError("the recipe on_policy_pairs needs a base, which generates the completions")
        if self.base is None and any(chosen.kind == "tokens" for chosen in self.filters):
            raise ValueError("the filter tokens needs a base, whose tokenizer counts the tokens")
        # Sentence pairs become rows through the recipe translation, and only through it.
        is_translation = isinstance(self.recipe, TranslationRecipe)
        if is_translation and self.source is None:
            raise ValueError("the recipe translation reads sentence pairs: set a source that contains them")
        if self.source is not None and self.source.kind in ("aligned", "tsv", "tmx") and not is_translation:
            raise ValueError(f"a source of kind {self.source.kind} needs the recipe translation")
        return self
