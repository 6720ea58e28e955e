"""Config of the `prepare` stage: make datasets that are ready to train on, and show what they become."""

from typing import Literal, Self

from pydantic import Field, model_validator

from trainers.configs.base import MAX_COUNT, DatasetPart, DatasetRef, ModelRef, StageConfig
from trainers.configs.recipes import Filter, OnPolicyPairsRecipe, Recipe, SplitSizes, TranslationRecipe
from trainers.configs.sources import Source
from trainers.data.convert import RowShape


class PrepareConfig(StageConfig):
    """Read rows, rewrite, filter, convert and split them; with `base`, show which tokens carry loss.

    Without any of `source`, `recipe`, `filters`, `convert_to` and `split` it only shows rows.
    """

    stage: Literal["prepare"] = Field("prepare", description="Kind of the stage.")
    base: ModelRef | None = Field(
        None, description="Model whose tokenizer and template render rows, and which `on_policy_pairs` asks."
    )
    dataset: DatasetRef | None = None
    source: Source | None = Field(None, description="What is read instead of a dataset of the registry.")
    recipe: Recipe | None = None
    filters: list[Filter] = Field(default_factory=list, max_length=20, description="In the order given.")
    convert_to: RowShape | None = None
    split: SplitSizes | None = None
    rows: int = Field(5, ge=1, le=100, description="Rows to render, from the start of the dataset.")
    max_length: int = Field(
        1024, ge=8, le=MAX_COUNT, description="Tokens per row, as the training stage would cut them."
    )

    @property
    def makes_datasets(self) -> bool:
        """Whether it writes rows, and does not only show them."""
        return bool(self.source or self.recipe or self.filters or self.convert_to or self.split)

    @property
    def parts(self) -> list[DatasetPart]:
        """The datasets that it makes."""
        if not self.makes_datasets:
            return []
        held_out = (
            {DatasetPart.validation: self.split.validation, DatasetPart.test: self.split.test}
            if self.split
            else {}
        )
        return [DatasetPart.train, *(part for part, size in held_out.items() if size)]

    @model_validator(mode="after")
    def _pieces_fit(self) -> Self:
        if (self.dataset is None) == (self.source is None):
            raise ValueError("name either a dataset or a source to read from")
        if not self.makes_datasets and self.base is None:
            raise ValueError(
                "nothing is asked for: name a base to show rows, or a recipe, filters or a split"
            )
        if self.base is None and isinstance(self.recipe, OnPolicyPairsRecipe):
            raise ValueError("the recipe on_policy_pairs needs a base, whose answers it takes")
        if self.base is None and any(chosen.kind == "tokens" for chosen in self.filters):
            raise ValueError("the filter tokens needs a base, whose tokenizer counts them")
        self._check_pairs()
        return self

    def _check_pairs(self) -> None:
        """Sentence pairs become rows by the recipe for translation, and by no other."""
        is_translation = isinstance(self.recipe, TranslationRecipe)
        if is_translation and self.source is None:
            raise ValueError("the recipe translation reads sentence pairs: name a source that holds them")
        if self.source is not None and self.source.kind in ("aligned", "tsv", "tmx") and not is_translation:
            raise ValueError(f"a source of kind {self.source.kind} needs the recipe translation")
