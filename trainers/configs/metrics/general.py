"""Configs of metrics for any task: overlap of words, patterns, JSON, tool calls, perplexity."""

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from trainers.configs.base import NonEmpty
from trainers.configs.metrics.base import MetricConfig, MetricScale
from trainers.configs.parsing.json_schema import compile_schema
from trainers.configs.parsing.linear_pattern import MAX_PATTERN_CHARACTERS, LinearPattern


class TextUnit(StrEnum):
    """What is counted of a text."""

    words = "words"
    characters = "characters"


_UNIT = Field(
    TextUnit.words,
    description="What is compared: `words` between white space, or `characters` without it, which is usual "
    "for Korean, whose particles are written together with the noun.",
)


class TokenF1(MetricConfig):
    """Mean overlap of the words of response and reference, as in SQuAD: 0 to 1."""

    metric: Literal["f1"] = Field("f1", description="Kind of metric.")
    unit: TextUnit = _UNIT

    @property
    def scale(self) -> MetricScale:
        """The values that the metric can have."""
        return MetricScale(is_share=False)


class RougeL(MetricConfig):
    """Mean F-measure of the longest common subsequence of words, ROUGE-L: 0 to 1."""

    metric: Literal["rouge_l"] = Field("rouge_l", description="Kind of metric.")
    unit: TextUnit = _UNIT
    stemmer: bool = Field(False, description="Remove the endings of English words (Porter stemmer).")

    @property
    def scale(self) -> MetricScale:
        """The values that the metric can have."""
        return MetricScale(is_share=False)


def _check_pattern(pattern: str) -> str:
    LinearPattern(pattern)
    return pattern


class RegularExpression(MetricConfig):
    """Share of the rows whose response matches a pattern.

    The search takes time proportional to the response: look-around and back-references are refused.
    """

    metric: Literal["regular_expression"] = Field("regular_expression", description="Kind of metric.")
    pattern: Annotated[str, AfterValidator(_check_pattern)] | None = Field(
        None,
        min_length=1,
        max_length=MAX_PATTERN_CHARACTERS,
        description="Pattern in the syntax of Rust's `regex`, such as `(?i)^answer: [0-9]+$`.",
    )
    pattern_field: NonEmpty | None = Field(
        None, description="Field of each row that contains its pattern, instead of `pattern`."
    )
    whole: bool = Field(False, description="Match the whole response, without white space around it.")

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.pattern is None) == (self.pattern_field is None):
            raise ValueError("set either pattern or pattern_field")
        return self


def _check_schema(schema: dict[str, Any]) -> dict[str, Any]:
    compile_schema(schema)
    return schema


class JsonSchema(MetricConfig):
    """Share of the rows whose response is JSON that fulfils a schema."""

    metric: Literal["json_schema"] = Field("json_schema", description="Kind of metric.")
    json_schema: Annotated[dict[str, Any], AfterValidator(_check_schema)] | None = Field(
        None,
        description="The schema, of draft 4, 6, 7, 2019-09 or 2020-12; `$ref` may refer to its own "
        "definitions only.",
    )
    schema_field: NonEmpty | None = Field(
        None, description="Field of each row that contains its schema, instead of `json_schema`."
    )
    allow_code_fence: bool = Field(
        False, description="Also accept JSON as the only content of a Markdown code fence."
    )

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.json_schema is None) == (self.schema_field is None):
            raise ValueError("set either json_schema or schema_field")
        return self


class ToolCalls(MetricConfig):
    """Share of the rows whose response calls the same tools with the same arguments as the reference.

    A response without calls is right where the reference has none. Engines return calls if they parse them:
    vllm and sglang with `options.tool_call_parser`; hf and mlx reject rows with `tools`.
    """

    metric: Literal["tool_calls"] = Field("tool_calls", description="Kind of metric.")
    order: Literal["any", "strict"] = Field(
        "any", description="Whether parallel calls must be in the order of the reference."
    )
    arguments: Literal["equal", "ignored"] = Field(
        "equal", description="`equal` compares arguments as JSON; `ignored` compares the names only."
    )


class Perplexity(MetricConfig):
    """Perplexity of the references under the model: how surprised it is by them; lower is better.

    It is the exponential of the mean negative log-likelihood per token of all references, given their
    prompts. Models with different tokenizers cannot be compared by it. It needs an engine that scores the
    tokens of a prompt: hf, mlx or vllm.
    """

    can_grow: ClassVar[bool] = False
    metric: Literal["perplexity"] = Field("perplexity", description="Kind of metric.")

    @property
    def scale(self) -> MetricScale:
        """The values that the metric can have."""
        return MetricScale(1.0, None, higher_is_better=False, is_share=False)
