"""Configs of graders that ask another model for a score or a label."""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from trainers.configs.base import Config, NonEmpty
from trainers.configs.graders.base import PASS_THRESHOLD, GraderConfig, TemplateText
from trainers.configs.graders.served_model import GraderModel

MAX_MESSAGES = 64
MAX_PARTS = 64
MAX_LABELS = 100
MAX_GRADER_TOKENS = 65_536
_FINITE = 1e6


class GraderText(Config):
    """A part of a message with text."""

    type: Literal["input_text", "output_text"] = Field(description="`input_text` or `output_text`.")
    text: TemplateText = Field(description="Template of the text.")


def _refuse_media(content: object) -> object:
    parts = content if isinstance(content, list) else [content]
    media = {"input_image", "input_audio"}
    if any(isinstance(part, dict) and part.get("type") in media for part in parts):
        raise ValueError("graders read text: images and audio cannot be graded here")
    return content


GraderContent = Annotated[
    TemplateText
    | GraderText
    | Annotated[list[TemplateText | GraderText], Field(min_length=1, max_length=MAX_PARTS)],
    BeforeValidator(_refuse_media),
]


class GraderMessage(Config):
    """A message to the grading model."""

    type: Literal["message"] | None = Field("message", description="Always `message`.")
    role: Literal["user", "assistant", "system", "developer"] = Field(description="Author of the message.")
    content: GraderContent = Field(description="Template of the text, or parts with text.")

    @property
    def templates(self) -> list[str]:
        """The templates of the parts, which are joined."""
        parts = self.content if isinstance(self.content, list) else [self.content]
        return [part if isinstance(part, str) else part.text for part in parts]


class ReasoningEffort(StrEnum):
    """Effort of a reasoning model."""

    none = "none"
    minimal = "minimal"
    low = "low"
    medium = "medium"
    high = "high"
    xhigh = "xhigh"
    max = "max"


class GraderSampling(Config):
    """Sampling of the grading model; a field that is null is not sent."""

    max_completions_tokens: int | None = Field(
        None, ge=16, le=MAX_GRADER_TOKENS, description="Limit of the tokens of an answer; null means 4,096."
    )
    reasoning_effort: ReasoningEffort | None = Field(None, description="Effort, of a model that reasons.")
    seed: int | None = Field(None, ge=0, le=2**32 - 1, description="Seed of the sampling.")
    temperature: float | None = Field(None, ge=0, le=2, description="Temperature; higher varies more.")
    top_p: float | None = Field(None, gt=0, le=1, description="Share of the probability to sample from.")


class ModelGraderConfig(GraderConfig):
    """Fields of every grader that asks a model."""

    model: GraderModel = Field(
        description="Model that grades: `{endpoint: NAME, model: …}` for an OpenAI-compatible endpoint that "
        "the operator has named in the settings, `{deployment: NAME}`, or a text: `ENDPOINT/MODEL` or the "
        "name of a deployment."
    )
    input: list[GraderMessage] = Field(
        min_length=1, max_length=MAX_MESSAGES, description="Messages to the grading model."
    )
    sampling_params: GraderSampling | None = Field(None, description="Sampling of the grading model.")


class ScoreModelGrader(ModelGraderConfig):
    """The score that a model gives, limited to a range."""

    type: Literal["score_model"] = Field("score_model", description="Kind of grader.")
    range: Annotated[
        list[Annotated[float, Field(ge=-_FINITE, le=_FINITE)]],
        Field(min_length=2, max_length=2),
        BeforeValidator(lambda value: [0.0, 1.0] if value is None else value),
    ] = Field([0.0, 1.0], description="Lowest and highest score; an answer outside counts as the nearer one.")
    pass_threshold: float | None = PASS_THRESHOLD

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        lowest, highest = self.range
        if lowest >= highest:
            raise ValueError(f"range: the first number ({lowest:g}) must be below the second ({highest:g})")
        return self

    @property
    def best_score(self) -> float:
        """The highest score."""
        return self.range[1]

    @property
    def worst_score(self) -> float:
        """The lowest score."""
        return self.range[0]


class LabelModelGrader(ModelGraderConfig):
    """1 if the label that a model assigns is a passing one, else 0."""

    type: Literal["label_model"] = Field("label_model", description="Kind of grader.")
    labels: list[NonEmpty] = Field(
        min_length=1, max_length=MAX_LABELS, description="Labels from which the model chooses."
    )
    passing_labels: list[NonEmpty] = Field(
        min_length=1, max_length=MAX_LABELS, description="Labels that give 1; a part of `labels`."
    )

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        unknown = next((label for label in self.passing_labels if label not in self.labels), None)
        if unknown is not None:
            raise ValueError(f"the passing label {unknown!r} is not one of `labels`")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("`labels` contains a label twice")
        return self
