"""How a model generates in a run, with the fields of OpenAI's API: responses spell two differently."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from trainers.configs.graders.model import ReasoningEffort
from trainers.configs.parsing.chat_options import OfferedTools, check_response_format, check_tool

FLAT_FIELDS = frozenset({"type", "name", "description", "parameters", "strict"})


class EvalSampling(BaseModel):
    """How a model generates; a field that is null has the default of the stage `evaluate`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000, description="Limit of the tokens.")
    max_completions_tokens: int | None = Field(None, ge=1, le=1_000_000, description="The older name.")
    temperature: float | None = Field(None, ge=0, le=2, description="Temperature; null means 1.")
    top_p: float | None = Field(None, gt=0, le=1, description="Share of the probability to sample from.")
    seed: int | None = Field(None, ge=0, le=2**32 - 1, description="Seed of the sampling.")
    reasoning_effort: ReasoningEffort | None = Field(
        None, strict=False, description="Effort, of a model that reasons; engines `hf` and `mlx` have none."
    )

    @property
    def stage_fields(self) -> dict[str, Any]:
        """The fields of the stage."""
        given = {
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "max_new_tokens": self.max_completion_tokens or self.max_completions_tokens,
            "reasoning_effort": self.reasoning_effort,
            **self.chat_fields,
        }
        return {name: value for name, value in given.items() if value is not None}

    @property
    def chat_fields(self) -> dict[str, Any]:
        """The tools and the form of the answer, as chats have them."""
        return {}


class CompletionsSampling(EvalSampling):
    """Sampling of chat completions."""

    tools: OfferedTools | None = Field(None, description="Functions that the model may call.")
    response_format: Annotated[dict[str, Any], AfterValidator(check_response_format)] | None = Field(
        None, description="Form of the answer: `text`, `json_object` or `json_schema`."
    )

    @property
    def chat_fields(self) -> dict[str, Any]:
        """The fields as they are."""
        return {"tools": self.tools, "response_format": self.response_format}


def _check_flat_tool(tool: dict[str, Any]) -> dict[str, Any]:
    check_tool(_nest_tool(tool))
    return tool


def _nest_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a function of responses in the form of chats."""
    if tool.get("type") != "function":
        return tool
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _nest_format(chosen: dict[str, Any]) -> dict[str, Any]:
    if chosen.get("type") != "json_schema":
        return chosen
    return {
        "type": "json_schema",
        "json_schema": {name: value for name, value in chosen.items() if name != "type"},
    }


def _check_flat_format(chosen: dict[str, Any]) -> dict[str, Any]:
    check_response_format(_nest_format(chosen))
    return chosen


class ResponseTextSampling(BaseModel):
    """The text of responses."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Annotated[dict[str, Any], AfterValidator(_check_flat_format)] | None = Field(
        None, description="Form of the answer: `text`, `json_object` or `json_schema`."
    )


class ResponsesSampling(EvalSampling):
    """Sampling of responses."""

    tools: (
        Annotated[
            list[Annotated[dict[str, Any], AfterValidator(_check_flat_tool)]],
            Field(min_length=1, max_length=128),
        ]
        | None
    ) = Field(None, description="Functions that the model may call; other tools are not offered.")
    text: ResponseTextSampling | None = Field(None, description="Form of the answer.")

    @property
    def chat_fields(self) -> dict[str, Any]:
        """The fields in the form of chats."""
        chosen = self.text.format if self.text is not None else None
        return {
            "tools": [_nest_tool(tool) for tool in self.tools] if self.tools else None,
            "response_format": None if chosen is None else _nest_format(chosen),
        }
