"""Config of graders that run Python code in a sandbox."""

import ast
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from trainers.configs.base import NonEmpty
from trainers.configs.graders.base import PASS_THRESHOLD, GraderConfig

# OpenAI's limit.
MAX_SOURCE_BYTES = 256 * 1024
PYTHON_GRADER = "python_grader"
"""What a worker announces that can run them."""


def _check_source(source: str) -> str:
    """Return the source if it is Python that defines `grade`; raises ValueError.

    The text is parsed and never executed: that happens in the sandbox alone.
    """
    if len(source.encode("utf-8", "surrogatepass")) > MAX_SOURCE_BYTES:
        raise ValueError(f"the source is larger than {MAX_SOURCE_BYTES // 1024} KiB")
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise ValueError(f"the source is not Python: {error.msg} in line {error.lineno}") from None
    except (ValueError, RecursionError, MemoryError):
        raise ValueError("the source is not Python, or is nested too deeply") from None
    if not any(isinstance(node, ast.FunctionDef) and node.name == "grade" for node in tree.body):
        raise ValueError("the source defines no function `grade(sample, item)`")
    return source


class PythonGrader(GraderConfig):
    """The number that a function `grade(sample, item)` returns, in a sandbox without network and files."""

    type: Literal["python"] = Field("python", description="Kind of grader.")
    source: Annotated[str, AfterValidator(_check_source)] = Field(
        min_length=1, max_length=MAX_SOURCE_BYTES, description="Python code with `grade(sample, item)`."
    )
    image_tag: NonEmpty | None = Field(
        None, description="Accepted and ignored: the sandbox has the interpreter and packages of its host."
    )
    pass_threshold: float | None = PASS_THRESHOLD
