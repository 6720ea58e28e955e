"""What the configs of all graders share."""

from typing import Annotated

from pydantic import AfterValidator, Field

from trainers.configs.base import Config, NonEmpty
from trainers.configs.graders.templates import MAX_TEMPLATE_CHARACTERS, check_template

TemplateText = Annotated[str, Field(max_length=MAX_TEMPLATE_CHARACTERS), AfterValidator(check_template)]
"""Text with variables of the row (`{{ item.answer }}`) and the completion (`{{ sample.output_text }}`)."""


class GraderConfig(Config):
    """Fields of every grader."""

    type: str = Field(description="Kind of grader.")
    name: NonEmpty = Field("grader", description="Name in results.")

    @property
    def best_score(self) -> float:
        """The best score that the grader gives by itself."""
        return 1.0

    @property
    def worst_score(self) -> float:
        """The score of a completion that lacks what the grader reads of it."""
        return 0.0

    @property
    def threshold(self) -> float:
        """The score from which a completion passes: by default the best one."""
        given: float | None = getattr(self, "pass_threshold", None)
        return self.best_score if given is None else given


PASS_THRESHOLD = Field(
    None,
    ge=-1e6,
    le=1e6,
    description="Score from which a completion passes; null means the best score of the grader.",
)
