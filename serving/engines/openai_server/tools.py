"""Tools and formats of the output in requests, in the forms of OpenAI's chats."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.engines.structured.calls.tool import Tool
from serving.engines.structured.json_schema import ANY_OBJECT
from serving.engines.structured.output import CallMode, OutputRequest
from serving.http.errors import InvalidRequest

MAX_TOOLS = 128
NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class FunctionDefinition(BaseModel):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def tool(self, param: str) -> Tool:
        """Return the tool with the definition that chat templates render. Raises InvalidRequest."""
        parameters = self.parameters or NO_PARAMETERS
        if parameters.get("type", "object") != "object":
            raise InvalidRequest(
                f"The parameters of the tool {self.name!r} must be a schema of the type 'object', and not "
                f"{parameters['type']!r}.",
                param,
            )
        given = {"description": self.description, "parameters": parameters, "strict": self.strict}
        function = {"name": self.name} | {name: value for name, value in given.items() if value is not None}
        return Tool(
            self.name,
            {"type": "object", **parameters},
            bool(self.strict),
            {"type": "function", "function": function},
        )


class ToolDefinition(BaseModel):
    """A tool of a chat."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionReference(BaseModel):
    """The name of a function."""

    name: str


class NamedTool(BaseModel):
    """The tool that must be called."""

    type: Literal["function"]
    function: FunctionReference


class AllowedToolSet(BaseModel):
    """The tools among those of the request that may be called."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=MAX_TOOLS)


class AllowedTools(BaseModel):
    """A choice among some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedToolSet


ToolChoice = (
    Literal["none", "auto", "required"] | Annotated[NamedTool | AllowedTools, Field(discriminator="type")]
)
Tools = Annotated[list[ToolDefinition], Field(max_length=MAX_TOOLS)]


class JsonSchemaFormat(BaseModel):
    """A schema that the text of a completion follows."""

    model_config = ConfigDict(populate_by_name=True)

    name: str = Field(min_length=1, max_length=64)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextResponseFormat(BaseModel):
    """Any text."""

    type: Literal["text"]


class JsonObjectResponseFormat(BaseModel):
    """An object of JSON."""

    type: Literal["json_object"]


class JsonSchemaResponseFormat(BaseModel):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchemaFormat


ResponseFormat = Annotated[
    TextResponseFormat | JsonObjectResponseFormat | JsonSchemaResponseFormat, Field(discriminator="type")
]


def format_schema(response_format: ResponseFormat | None) -> dict[str, Any] | None:
    """Return the schema of a format; None for plain text."""
    if isinstance(response_format, JsonSchemaResponseFormat):
        return response_format.json_schema.schema_ or {}
    return ANY_OBJECT if isinstance(response_format, JsonObjectResponseFormat) else None


def chat_output(
    definitions: Sequence[ToolDefinition],
    choice: ToolChoice | None,
    parallel: bool,
    response_format: ResponseFormat | None,
) -> OutputRequest:
    """Return what a chat asks for. Raises InvalidRequest."""
    tools = [
        definition.function.tool(f"tools[{number}].function.parameters")
        for number, definition in enumerate(definitions)
    ]
    schema = format_schema(response_format)
    if isinstance(choice, NamedTool):
        return select_tools(tools, CallMode.named, [choice.function.name], parallel, schema)
    if isinstance(choice, AllowedTools):
        names = [tool.function.name for tool in choice.allowed_tools.tools]
        return select_tools(tools, CallMode(choice.allowed_tools.mode), names, parallel, schema)
    mode = CallMode(choice or ("auto" if tools else "none"))
    return select_tools(tools, mode, [tool.name for tool in tools], parallel, schema)


def select_tools(
    tools: Sequence[Tool],
    mode: CallMode,
    names: Sequence[str],
    parallel: bool,
    schema: dict[str, Any] | None,
    schema_param: str = "response_format",
) -> OutputRequest:
    """Return a request in which the named tools may be called. Raises InvalidRequest for unknown names."""
    repeated = [name for name, count in Counter(tool.name for tool in tools).items() if count > 1]
    if repeated:
        raise InvalidRequest(f"'tools' contains {repeated[0]!r} twice; names must be unique.", "tools")
    if mode in (CallMode.required, CallMode.named) and not tools:
        raise InvalidRequest("'tool_choice' needs 'tools' to choose from.", "tool_choice")
    known = {tool.name: tool for tool in tools}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InvalidRequest(
            f"'tool_choice' names {unknown[0]!r}, which is not among the tools: {', '.join(known)}.",
            "tool_choice",
        )
    callable_tools = tuple(known[name] for name in dict.fromkeys(names))
    return OutputRequest(tuple(tools), callable_tools, mode, parallel, schema, schema_param)
