"""What a request allows a completion to be, as a constraint for its tokens and a parser for its text."""

import secrets
import string
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from serving.engines.decoding.served import ServedModel
from serving.engines.structured.calls.families import UnknownFamily, find_call_syntax
from serving.engines.structured.calls.parser import CallParser
from serving.engines.structured.calls.syntax import CallSyntax
from serving.engines.structured.calls.tool import Tool
from serving.engines.structured.constraint import Constraint
from serving.engines.structured.grammar import (
    GrammarInvalid,
    Vocabulary,
    compile_grammar,
    load_vocabulary,
)
from serving.engines.structured.json_schema import Schema, SchemaTooComplex, json_rule
from serving.http.errors import InvalidRequest
from trainers.configs.engines import EngineOptions

ALPHANUMERIC = string.ascii_letters + string.digits
CALL_ID_CHARACTERS = 24


class CallMode(StrEnum):
    """When a completion calls tools."""

    none = "none"
    auto = "auto"
    required = "required"
    named = "named"


@dataclass(frozen=True)
class OutputRequest:
    """What a request says about its completions; errors name its parameters.

    `tools` are rendered, and `callable_tools` are those among them that may be called. `schema` is that of
    the text, and `schema_param` the parameter that contains it.
    """

    tools: tuple[Tool, ...] = ()
    callable_tools: tuple[Tool, ...] = ()
    mode: CallMode = CallMode.none
    parallel: bool = True
    schema: Schema | None = None
    schema_param: str = "response_format"

    @property
    def calls_tools(self) -> bool:
        """Whether a completion may call a tool."""
        return self.mode is not CallMode.none and bool(self.callable_tools)

    @property
    def definitions(self) -> list[dict[str, Any]] | None:
        """The tools for a chat template; a completion that may not call any is not offered them."""
        return [tool.definition for tool in self.tools] if self.calls_tools else None


@dataclass(frozen=True)
class OutputPlan:
    """How the completions of a request are constrained and read."""

    constraint: Constraint | None = None
    syntax: CallSyntax | None = None
    tools: tuple[Tool, ...] = ()
    mode: CallMode = CallMode.none
    shows_special_tokens: bool = False
    """Whether the markers of calls are special tokens, which the text must then contain."""

    def make_parser(self) -> CallParser | None:
        """Return a parser for one completion, or None if it cannot contain calls."""
        return None if self.syntax is None else CallParser(self.syntax, self.tools)

    def new_call_id(self) -> str:
        """Return the id of a call, in the form that the model's family requires."""
        if self.syntax is not None and self.syntax.call_id_length is not None:
            return "".join(secrets.choice(ALPHANUMERIC) for _ in range(self.syntax.call_id_length))
        return "call_" + "".join(secrets.choice(ALPHANUMERIC) for _ in range(CALL_ID_CHARACTERS))


FREE_OUTPUT = OutputPlan()


def plan_output(
    served: ServedModel, vocabulary_size: int, options: EngineOptions, request: OutputRequest
) -> OutputPlan:
    """Compile what a request allows.

    Raises:
        InvalidRequest: A schema cannot be enforced, or the model cannot call tools or follow a grammar.
    """
    if request.schema is None and not request.calls_tools:
        return FREE_OUTPUT
    vocabulary = _load_vocabulary(served, vocabulary_size, request)
    if not request.calls_tools:
        return OutputPlan(_constrain(served, vocabulary, options, request, None))
    syntax = _find_syntax(served, options, request, vocabulary)
    return OutputPlan(
        _constrain(served, vocabulary, options, request, syntax),
        syntax,
        request.callable_tools,
        request.mode,
        any(marker in vocabulary.special_ids for marker in syntax.markers),
    )


def _constrain(
    served: ServedModel,
    vocabulary: Vocabulary,
    options: EngineOptions,
    request: OutputRequest,
    syntax: CallSyntax | None,
) -> Constraint:
    compact, trigger = options.compact_json, None
    rules, start = [], []
    try:
        if syntax is not None:
            parallel = request.parallel and request.mode is not CallMode.named
            rules.append(syntax.rules(vocabulary, request.callable_tools, parallel, compact))
            start.append("calls")
        if request.schema is not None and request.mode in (CallMode.none, CallMode.auto):
            rules.append(f"content: {json_rule(request.schema, compact=compact)}")
            start.append("content")
        elif syntax is not None and request.mode is CallMode.auto:
            trigger = syntax.trigger(request.callable_tools)
        grammar = compile_grammar(vocabulary, "\n".join([f"start: {' | '.join(start)}", *rules]))
    except (GrammarInvalid, SchemaTooComplex) as error:
        raise _locate(vocabulary, compact, request, syntax, error) from error
    return Constraint(grammar, vocabulary, served.eos_ids, trigger)


def _locate(
    vocabulary: Vocabulary,
    compact: bool,
    request: OutputRequest,
    syntax: CallSyntax | None,
    error: ValueError,
) -> InvalidRequest:
    """Return the error that names the first schema that cannot be compiled alone."""
    for number, tool in enumerate(request.tools if syntax is not None else ()):
        assert syntax is not None
        try:
            compile_grammar(vocabulary, f"start: calls\n{syntax.rules(vocabulary, [tool], False, compact)}")
        except (GrammarInvalid, SchemaTooComplex) as reason:
            return InvalidRequest(
                f"The parameters of the tool {tool.name!r} cannot be enforced: {reason}.",
                f"tools[{number}].function.parameters",
            )
    return InvalidRequest(f"The schema cannot be enforced: {error}.", request.schema_param)


def _load_vocabulary(served: ServedModel, size: int, request: OutputRequest) -> Vocabulary:
    try:
        return load_vocabulary(served.tokenizer, size, served.eos_ids)
    except GrammarInvalid as error:
        raise InvalidRequest(
            f"The completions of the model {served.name!r} cannot follow a grammar: {error}.",
            "tools" if request.calls_tools else request.schema_param,
        ) from error


def _find_syntax(
    served: ServedModel, options: EngineOptions, request: OutputRequest, vocabulary: Vocabulary
) -> CallSyntax:
    try:
        template: str = served.tokenizer.get_chat_template(tools=request.definitions)
    except ValueError:
        template = ""
    try:
        return find_call_syntax(template, options.tool_call_parser, vocabulary.special_ids)
    except UnknownFamily as error:
        raise InvalidRequest(
            f"The chat template of the model {served.name!r} {error}. Leave 'tools' out, or start the engine "
            "with the option tool_call_parser.",
            "tools",
        ) from error
