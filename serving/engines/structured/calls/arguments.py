"""The arguments of a call: how a form of them is generated, and how it is read as JSON."""

from dataclasses import dataclass
from typing import Protocol

from serving.engines.structured.calls.tool import Tool
from serving.engines.structured.grammar import Vocabulary


class ArgumentsReader(Protocol):
    """Reads the arguments of one call, which arrive in pieces, as the text of a JSON object."""

    is_complete: bool

    def read(self, text: str) -> tuple[str, int]:
        """Return the JSON of a piece, and how many of its characters were read; the rest is pushed again."""


class ArgumentsForm(Protocol):
    """The form in which a family writes arguments."""

    def rules(self, rule: str, tool: Tool, vocabulary: Vocabulary, compact: bool) -> str:
        """Return the rule of this name for a tool's arguments, and those that it needs, of a grammar.

        Raises:
            GrammarInvalid: The schema contains what this form cannot express or enforce.
            SchemaTooComplex: The schema exceeds a bound.
        """

    def reader(self, tool: Tool) -> ArgumentsReader:
        """Return a reader of the arguments of one call."""


@dataclass(frozen=True)
class JsonArguments:
    """An object of JSON."""

    def rules(self, rule: str, tool: Tool, vocabulary: Vocabulary, compact: bool) -> str:
        """Return the rule of an object that the tool's schema accepts."""
        return f"{rule}: {tool.json_rule(tool.parameters, compact)}"

    def reader(self, tool: Tool) -> ArgumentsReader:
        """Return a reader that finds the end of the object."""
        return JsonReader()


def ends_in_string(text: str) -> bool:
    """Return whether the beginning of a value of JSON ends within a string."""
    reader = JsonReader()
    reader.read(text)
    return reader.is_in_string


class JsonReader:
    """Finds the end of an object of JSON that arrives in pieces."""

    def __init__(self) -> None:
        self.is_complete = False
        self._has_begun = False
        self._depth = 0
        self.is_in_string = self._is_escaped = False

    def read(self, text: str) -> tuple[str, int]:
        """Return what of a piece belongs to the object, without the white space before it."""
        space = 0 if self._has_begun else len(text) - len(text.lstrip())
        end = space + self._find(text[space:])
        self._has_begun = self._has_begun or end > space
        return text[space:end], end

    def _find(self, text: str) -> int:
        for position, character in enumerate(text):
            if self.is_in_string:
                if self._is_escaped:
                    self._is_escaped = False
                elif character == "\\":
                    self._is_escaped = True
                elif character == '"':
                    self.is_in_string = False
            elif character == '"':
                self.is_in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.is_complete = True
                    return position + 1
        return len(text)
