"""Configs of graders, which give a completion a score, with the fields of OpenAI's API.

They are testing criteria of evaluations and rewards of reinforcement learning.
"""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, TypeAdapter

from trainers.configs.engines import join_capabilities
from trainers.configs.graders.base import GraderConfig
from trainers.configs.graders.model import (
    GraderMessage,
    LabelModelGrader,
    ModelGraderConfig,
    ScoreModelGrader,
)
from trainers.configs.graders.multi import MultiGrader
from trainers.configs.graders.python import PYTHON_GRADER, PythonGrader
from trainers.configs.graders.templates import Template, Variable, parse_template
from trainers.configs.graders.text import (
    COMMON_METRICS,
    TEXT_SIMILARITY,
    SimilarityMetric,
    StringCheckGrader,
    StringOperation,
    TextSimilarityGrader,
)

Grader = Annotated[
    StringCheckGrader
    | TextSimilarityGrader
    | ScoreModelGrader
    | LabelModelGrader
    | PythonGrader
    | MultiGrader,
    Field(discriminator="type"),
]
GRADER: TypeAdapter[Grader] = TypeAdapter(Grader)
"""Reads a grader from JSON values."""


def list_graders(grader: GraderConfig) -> list[GraderConfig]:
    """Return a grader and those that it combines."""
    return [grader, *(grader.graders.values() if isinstance(grader, MultiGrader) else ())]


def find_variables(grader: GraderConfig) -> Iterator[Variable]:
    """Yield the variables of all templates of a grader."""
    for one in list_graders(grader):
        for text in _list_templates(one):
            yield from parse_template(text).variables


def grader_capability(grader: GraderConfig) -> str | None:
    """Return what a worker must have to run the grader."""
    needed = [
        PYTHON_GRADER
        if isinstance(one, PythonGrader)
        else TEXT_SIMILARITY
        if isinstance(one, TextSimilarityGrader) and one.evaluation_metric not in COMMON_METRICS
        else None
        for one in list_graders(grader)
    ]
    return join_capabilities(needed)


def _list_templates(grader: GraderConfig) -> list[str]:
    if isinstance(grader, StringCheckGrader | TextSimilarityGrader):
        return [grader.input, grader.reference]
    if isinstance(grader, ModelGraderConfig):
        return [text for message in grader.input for text in message.templates]
    return []


__all__ = [
    "GRADER",
    "PYTHON_GRADER",
    "TEXT_SIMILARITY",
    "Grader",
    "GraderConfig",
    "GraderMessage",
    "LabelModelGrader",
    "ModelGraderConfig",
    "MultiGrader",
    "PythonGrader",
    "ScoreModelGrader",
    "SimilarityMetric",
    "StringCheckGrader",
    "StringOperation",
    "Template",
    "TextSimilarityGrader",
    "Variable",
    "find_variables",
    "grader_capability",
    "list_graders",
    "parse_template",
]
