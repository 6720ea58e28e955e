"""Tools, the choice among them, and the format of the text, in the forms of the Responses API."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.engines.openai_server.tools import (
    MAX_TOOLS,
    FunctionDefinition,
    JsonObjectResponseFormat,
    JsonSchemaFormat,
    TextResponseFormat,
    select_tools,
)
from serving.engines.structured.json_schema import ANY_OBJECT
from serving.engines.structured.output import CallMode, OutputRequest


class ToolType(BaseModel):
    """The type of a tool, which is checked before its other fields."""

    type: Literal["function"]


class ResponseFunction(FunctionDefinition, ToolType):
    """A function that the model may call."""


class ResponseNamedTool(BaseModel):
    """The function that must be called."""

    type: Literal["function"]
    name: str


class ResponseAllowedTools(BaseModel):
    """The functions among those of the request that may be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[ResponseNamedTool] = Field(min_length=1, max_length=MAX_TOOLS)


class ResponseSchemaFormat(JsonSchemaFormat):
    """JSON that follows a schema."""

    type: Literal["json_schema"]


ResponseTools = Annotated[list[ResponseFunction], Field(max_length=MAX_TOOLS)]
ResponseToolChoice = (
    Literal["none", "auto", "required"]
    | Annotated[ResponseNamedTool | ResponseAllowedTools, Field(discriminator="type")]
)


class TextOptions(BaseModel):
    """Options of the response's text, with OpenAI's defaults."""

    model_config = ConfigDict(extra="forbid")

    format: (
        Annotated[
            TextResponseFormat | JsonObjectResponseFormat | ResponseSchemaFormat, Field(discriminator="type")
        ]
        | None
    ) = None
    verbosity: Literal["medium"] | None = None

    @property
    def format_schema(self) -> dict[str, Any] | None:
        """The schema of the text; None for plain text."""
        if isinstance(self.format, ResponseSchemaFormat):
            return self.format.schema_ or {}
        return ANY_OBJECT if isinstance(self.format, JsonObjectResponseFormat) else None


def response_output(
    functions: list[ResponseFunction],
    choice: ResponseToolChoice | None,
    parallel: bool,
    text: TextOptions | None,
) -> OutputRequest:
    """Return what a response may be. Raises InvalidRequest."""
    tools = [function.tool(f"tools[{number}].parameters") for number, function in enumerate(functions)]
    mode, names = CallMode.auto if tools else CallMode.none, [tool.name for tool in tools]
    if isinstance(choice, ResponseNamedTool):
        mode, names = CallMode.named, [choice.name]
    elif isinstance(choice, ResponseAllowedTools):
        mode, names = CallMode(choice.mode), [tool.name for tool in choice.tools]
    elif choice is not None:
        mode = CallMode(choice)
    schema = None if text is None else text.format_schema
    return select_tools(tools, mode, names, parallel, schema, "text.format")
