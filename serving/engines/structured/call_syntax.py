"""How families of models write calls of tools: as a grammar to generate them, and as patterns to read them.

A family is the parser of the same name in vLLM. The grammar is stricter than these parsers: the name comes
before the arguments, and white space is limited. Both forms are made from the same parts, so that every
call that the grammar allows can be read.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import regex

from serving.engines.structured.grammar import Vocabulary
from serving.engines.structured.json_schema import Schema, json_rule
from trainers.configs.engines import ToolCallParser

CALL = "call"
PYTHON_TAG = "<|python_tag|>"
TOOL_CALLS, ARGS = "[TOOL_CALLS]", "[ARGS]"


@dataclass(frozen=True)
class Tool:
    """A function that a model may call; `definition` is what its chat template renders."""

    name: str
    parameters: Schema
    is_strict: bool
    definition: dict[str, Any]

    def arguments_rule(self, compact: bool) -> str:
        """Return the rule of the arguments; keywords that cannot be enforced count in strict tools only."""
        return json_rule(self.parameters, compact=compact, lenient=not self.is_strict)


@dataclass(frozen=True)
class CallPatterns:
    """Patterns by which calls are found in a text; `name` is a group of both opening ones.

    `first_opening` reaches from the beginning of the calls to the arguments of the first, `next_opening`
    from the end of a call to the arguments of the next one; `closing` follows the arguments. What is between
    calls and after the last consists of the characters in `separators`.
    """

    first_opening: "regex.Pattern[str]"
    next_opening: "regex.Pattern[str]"
    closing: "regex.Pattern[str]"
    separators: str = " \n"
    only_at_start: bool = False


class CallSyntax(ABC):
    """The calls of one family."""

    family: ToolCallParser
    call_id_length: int | None = None
    """The length of a call's id if templates require one."""

    @property
    @abstractmethod
    def markers(self) -> tuple[str, ...]:
        """Texts in calls that may be special tokens."""

    @abstractmethod
    def rules(self, vocabulary: Vocabulary, tools: Sequence[Tool], parallel: bool, compact: bool) -> str:
        """Return the rule `calls`, and the rules that it needs, of a grammar for calls of these tools."""

    @abstractmethod
    def trigger(self, tools: Sequence[Tool]) -> "regex.Pattern[str]":
        """Return a pattern for the text with which calls begin."""

    @abstractmethod
    def patterns(self, tools: Sequence[Tool]) -> CallPatterns:
        """Return the patterns by which calls are read."""


@dataclass(frozen=True)
class JsonCalls(CallSyntax):
    """Calls that are objects with a name and arguments, as in `{"name": "f", "arguments": {}}`.

    `begin` and `end` enclose all calls, `before` and `after` each of them, and `separator` is between two.
    All are literal texts, and a line feed in them is optional.
    """

    family: ToolCallParser
    arguments_key: str = "arguments"
    begin: str = ""
    before: str = ""
    after: str = ""
    separator: str = ""
    end: str = ""
    marker: str = ""
    only_at_start: bool = False
    call_id_length: int | None = None

    @property
    def markers(self) -> tuple[str, ...]:
        """The text that starts the calls."""
        return (self.marker,) if self.marker else ()

    def rules(self, vocabulary: Vocabulary, tools: Sequence[Tool], parallel: bool, compact: bool) -> str:
        """Return a rule for each tool, and `calls`."""
        lines = [
            f"{CALL}_{number}: /{self._head(_escape(tool.name))}/ arguments_{number} / ?\\}}/\n"
            f"arguments_{number}: {tool.arguments_rule(compact)}"
            for number, tool in enumerate(tools)
        ]
        literal = _Literals(vocabulary, self.marker)
        alternatives = " | ".join(f"{CALL}_{number}" for number in range(len(tools)))
        one = f"{literal(self.before)} ({alternatives}) {literal(self.after)}"
        more = f"({literal(self.separator)} {CALL})*" if parallel else ""
        calls = f"calls: {literal(self.begin)} {CALL} {more} {literal(self.end)}"
        return "\n".join([*lines, f"{CALL}: {one}", calls])

    def trigger(self, tools: Sequence[Tool]) -> "regex.Pattern[str]":
        """Return the marker, or where there is none the beginning of a completion that is a call."""
        if not self.only_at_start:
            return regex.compile(regex.escape(self.marker))
        return regex.compile(rf"\A(?:{_pattern(self.begin)})?\{{ ?\"name\": ?\"(?:{_names(tools)})\"")

    def patterns(self, tools: Sequence[Tool]) -> CallPatterns:
        """Return the patterns of the objects and of what encloses them."""
        head = self._head(f"(?P<name>{_names(tools)})")
        begin = f"(?:{_pattern(self.begin)})?" if self.only_at_start else _pattern(self.begin)
        return CallPatterns(
            regex.compile(rf"\s*{begin}{_pattern(self.before)}{head}"),
            regex.compile(rf"{_pattern(self.before)}{head}"),
            regex.compile(rf" ?\}}{_pattern(self.after)}"),
            separators=f" \n{self.separator}{self.end}",
            only_at_start=self.only_at_start,
        )

    def _head(self, name: str) -> str:
        return rf'\{{ ?"name": ?"{name}", ?"{self.arguments_key}": ?'


@dataclass(frozen=True)
class NamedCalls(CallSyntax):
    """Calls that are a name between two markers and the arguments, as in `[TOOL_CALLS]f[ARGS]{}`."""

    family: ToolCallParser
    call_id_length: int | None = None
    markers: tuple[str, ...] = field(default=(TOOL_CALLS, ARGS))

    def rules(self, vocabulary: Vocabulary, tools: Sequence[Tool], parallel: bool, compact: bool) -> str:
        """Return a rule for each tool, and `calls`."""
        opening, middle = map(vocabulary.terminal, self.markers)
        lines = [
            f"{CALL}_{number}: {opening} {vocabulary.terminal(tool.name)} {middle} arguments_{number}\n"
            f"arguments_{number}: {tool.arguments_rule(compact)}"
            for number, tool in enumerate(tools)
        ]
        alternatives = " | ".join(f"{CALL}_{number}" for number in range(len(tools)))
        return "\n".join([*lines, f"{CALL}: {alternatives}", f"calls: {CALL}{'+' if parallel else ''}"])

    def trigger(self, tools: Sequence[Tool]) -> "regex.Pattern[str]":
        """Return the first marker."""
        return regex.compile(regex.escape(self.markers[0]))

    def patterns(self, tools: Sequence[Tool]) -> CallPatterns:
        """Return the patterns of the markers around a name."""
        opening, middle = map(regex.escape, self.markers)
        pattern = regex.compile(rf"\s*{opening}(?P<name>{_names(tools)}){middle}")
        return CallPatterns(pattern, pattern, regex.compile(""))


QWEN = JsonCalls(ToolCallParser.qwen, before="\n<tool_call>\n", after="\n</tool_call>", marker="<tool_call>")
LLAMA3 = JsonCalls(
    ToolCallParser.llama3,
    arguments_key="parameters",
    begin=PYTHON_TAG,
    separator="; ",
    marker=PYTHON_TAG,
    only_at_start=True,
)
MISTRAL_LIST = JsonCalls(
    ToolCallParser.mistral,
    begin=f"{TOOL_CALLS}[",
    separator=", ",
    end="]",
    marker=TOOL_CALLS,
    call_id_length=9,
)
MISTRAL_NAMED = NamedCalls(ToolCallParser.mistral, call_id_length=9)
PHI4_MINI = JsonCalls(
    ToolCallParser.phi4_mini, begin="functools[", separator=", ", end="]", marker="functools["
)


def find_call_syntax(template: str, chosen: ToolCallParser | None) -> CallSyntax | None:
    """Return the syntax of the family that is chosen, or else of the one that a chat template shows."""
    mistral = MISTRAL_NAMED if ARGS in template else MISTRAL_LIST
    by_family: dict[ToolCallParser, CallSyntax] = {
        ToolCallParser.qwen: QWEN,
        ToolCallParser.llama3: LLAMA3,
        ToolCallParser.mistral: mistral,
        ToolCallParser.phi4_mini: PHI4_MINI,
    }
    if chosen is not None:
        return by_family[chosen]
    if TOOL_CALLS in template:
        return mistral
    if "<tool_call>" in template and "<function=" not in template:
        return QWEN
    if "functools" in template:
        return PHI4_MINI
    return LLAMA3 if PYTHON_TAG in template or '"parameters": ' in template else None


@dataclass(frozen=True)
class _Literals:
    """Writes literal texts as terminals; a marker may be a special token, and a line feed is optional."""

    vocabulary: Vocabulary
    marker: str

    def __call__(self, text: str) -> str:
        parts: list[str] = []
        for piece in regex.split(f"({regex.escape(self.marker)}|\n)" if self.marker else "(\n)", text):
            if piece == "\n":
                parts.append("/\\n?/")
            elif piece == PYTHON_TAG:
                parts.append(f"({self.vocabulary.terminal(piece)})?")
            elif piece:
                parts.append(self.vocabulary.terminal(piece))
        return " ".join(parts)


def _pattern(text: str) -> str:
    return str(regex.escape(text)).replace("\\\n", "\n").replace("\n", r"\n?")


def _names(tools: Sequence[Tool]) -> str:
    return "|".join(regex.escape(tool.name) for tool in sorted(tools, key=lambda tool: -len(tool.name)))


def _escape(name: str) -> str:
    """Return a pattern of a name between slashes."""
    return str(regex.escape(name)).replace("/", r"\/")
