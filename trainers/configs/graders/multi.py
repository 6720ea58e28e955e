"""Config of graders that combine the scores of others by a formula."""

import keyword
import unicodedata
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from trainers.configs.graders.base import GraderConfig
from trainers.configs.graders.formulas import FORMULA_FUNCTIONS, MAX_FORMULA_CHARACTERS, Formula
from trainers.configs.graders.model import LabelModelGrader, ScoreModelGrader
from trainers.configs.graders.python import PythonGrader
from trainers.configs.graders.text import StringCheckGrader, TextSimilarityGrader

MAX_GRADERS = 32
SingleGrader = Annotated[
    StringCheckGrader | TextSimilarityGrader | ScoreModelGrader | LabelModelGrader | PythonGrader,
    Field(discriminator="type"),
]


def _name_graders(value: Any) -> Any:
    """Return the graders by name: the SDK's types also allow a single grader, which has a name of its own."""
    if isinstance(value, dict) and isinstance(value.get("type"), str):
        value = [value]
    if not isinstance(value, list):
        return value
    names = [str(one.get("name", "grader")) if isinstance(one, dict) else "" for one in value]
    if len(set(names)) < len(names):
        raise ValueError("two of the graders have the same name")
    return dict(zip(names, value, strict=True))


class MultiGrader(GraderConfig):
    """A formula of the scores of several graders."""

    type: Literal["multi"] = Field("multi", description="Kind of grader.")
    graders: Annotated[
        dict[str, SingleGrader], BeforeValidator(_name_graders), Field(min_length=1, max_length=MAX_GRADERS)
    ] = Field(description="The graders by the names that the formula uses.")
    calculate_output: str = Field(
        min_length=1,
        max_length=MAX_FORMULA_CHARACTERS,
        description="Formula of the graders' names and numbers, with + - * / ^, parentheses and the "
        f"functions {', '.join(FORMULA_FUNCTIONS)}, such as `0.7 * answer + 0.3 * form`.",
    )
    pass_threshold: float | None = Field(
        None, ge=-1e6, le=1e6, description="Score from which a completion passes; null means 1."
    )

    @model_validator(mode="after")
    def _check_formula(self) -> Self:
        for name in self.graders:
            if not is_variable_name(name):
                raise ValueError(
                    f"the formula cannot name the grader {name[:80]!r}: a name has letters, digits and "
                    "underscores, does not start with a digit, and is not the name of a function"
                )
        variables = Formula(self.calculate_output).variables
        unknown = sorted(variables - self.graders.keys())
        if unknown:
            known = ", ".join(self.graders)
            raise ValueError(f"the formula names {unknown[0]!r}, which is not a grader; there are: {known}")
        if not variables:
            raise ValueError("the formula names no grader, so all completions would have the same score")
        return self


def is_variable_name(name: str) -> bool:
    """Return whether a formula can contain the name as a variable."""
    return (
        name.isidentifier()
        and not keyword.iskeyword(name)
        and name not in FORMULA_FUNCTIONS
        # Python's parser normalizes names.
        and unicodedata.normalize("NFKC", name) == name
    )
