"""Configs of graders that compare two texts."""

from enum import StrEnum
from typing import Literal, Self

from pydantic import Field, model_validator

from trainers.configs.graders.base import PASS_THRESHOLD, GraderConfig, TemplateText
from trainers.configs.graders.served_model import GraderModel


class StringOperation(StrEnum):
    """Comparison of two texts."""

    eq = "eq"
    ne = "ne"
    like = "like"  # The input contains the reference.
    ilike = "ilike"  # The same, in any case.


class SimilarityMetric(StrEnum):
    """Measure of the similarity of two texts, from 0 to 1; cosine also from -1."""

    cosine = "cosine"
    fuzzy_match = "fuzzy_match"
    bleu = "bleu"
    gleu = "gleu"
    meteor = "meteor"
    rouge_1 = "rouge_1"
    rouge_2 = "rouge_2"
    rouge_3 = "rouge_3"
    rouge_4 = "rouge_4"
    rouge_5 = "rouge_5"
    rouge_l = "rouge_l"


# What every host computes, or a model does; the others need the packages of the extra `evaluation`.
COMMON_METRICS = frozenset({SimilarityMetric.fuzzy_match, SimilarityMetric.cosine})
TEXT_SIMILARITY = "text_similarity"


class StringCheckGrader(GraderConfig):
    """1 if the input is equal to, differs from, or contains the reference, else 0."""

    type: Literal["string_check"] = Field("string_check", description="Kind of grader.")
    input: TemplateText = Field(description="Template of the text to check.")
    reference: TemplateText = Field(description="Template of the text to compare with.")
    operation: StringOperation = Field(
        description="`eq` and `ne` compare the whole texts; `like` checks whether the input contains the "
        "reference, and `ilike` does so in any case of letters."
    )


class TextSimilarityGrader(GraderConfig):
    """The similarity of the input and the reference, from 0 to 1."""

    type: Literal["text_similarity"] = Field("text_similarity", description="Kind of grader.")
    input: TemplateText = Field(description="Template of the text to grade.")
    reference: TemplateText = Field(description="Template of the text to compare with.")
    evaluation_metric: SimilarityMetric = Field(description="Measure of the similarity.")
    pass_threshold: float | None = PASS_THRESHOLD
    embedding_model: GraderModel | None = Field(
        None,
        description="Model whose embeddings `cosine` compares: `{endpoint: NAME, model: …}` or "
        "`ENDPOINT/MODEL`. No other metric uses it.",
    )

    @model_validator(mode="after")
    def _check_embeddings(self) -> Self:
        if (self.evaluation_metric is SimilarityMetric.cosine) != (self.embedding_model is not None):
            raise ValueError("cosine needs an `embedding_model`, and no other metric uses one")
        return self
