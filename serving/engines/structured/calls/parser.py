"""Calls of tools in a completion, read while it is generated."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from serving.engines.structured.calls.arguments import ArgumentsReader
from serving.engines.structured.calls.syntax import CallSyntax
from serving.engines.structured.calls.tool import Tool


@dataclass(frozen=True)
class TextDelta:
    """Text outside of calls."""

    text: str


@dataclass(frozen=True)
class CallBegin:
    """The begin of a call, whose arguments follow."""

    name: str


@dataclass(frozen=True)
class ArgumentsDelta:
    """A piece of the JSON text of the arguments of the current call."""

    text: str


@dataclass(frozen=True)
class CallEnd:
    """The end of a call; a completion that is cut off ends without it."""


OutputEvent = TextDelta | CallBegin | ArgumentsDelta | CallEnd


class _Position(Enum):
    text = auto()
    arguments = auto()
    closing = auto()


class CallParser:
    """Splits a completion, which arrives in pieces, into text and calls.

    Text that may be the beginning of a call is withheld until it is certain.
    """

    def __init__(self, syntax: CallSyntax, tools: Sequence[Tool]) -> None:
        self._syntax = syntax
        self._patterns = syntax.patterns(tools)
        self._tools = {tool.name: tool for tool in tools}
        self._position = _Position.text
        self._pending = ""
        self._reader: ArgumentsReader | None = None
        self._n_calls = 0
        self._has_text = False
        # Directly after a call, where separators are no text.
        self._is_between = False

    def push(self, text: str) -> list[OutputEvent]:
        """Return the events that a piece of the completion completes."""
        self._pending += text
        events: list[OutputEvent] = []
        while self._pending:
            before = (self._position, len(self._pending))
            events += self._read()
            if (self._position, len(self._pending)) == before:
                break
        return events

    def finish(self) -> list[OutputEvent]:
        """Return the events of what is withheld, when no text follows."""
        pending, self._pending = self._pending, ""
        return [TextDelta(pending)] if pending and self._position is _Position.text else []

    def _read(self) -> list[OutputEvent]:
        if self._position is _Position.text:
            return self._read_text()
        if self._position is _Position.arguments:
            return self._read_arguments()
        return self._read_closing()

    def _read_text(self) -> list[OutputEvent]:
        patterns = self._patterns
        if self._is_between and not self._skip_separators():
            return []
        opening = patterns.next_opening if self._n_calls else patterns.first_opening
        if patterns.only_at_start:
            found = None if self._has_text else opening.match(self._pending, partial=True)
        else:
            found = opening.search(self._pending, partial=True)
        if found is None:
            return self._take_text(len(self._pending))
        events = self._take_text(found.start())
        if not found.partial:
            self._pending = self._pending[found.end() - found.start() :]
            self._position, self._reader = _Position.arguments, None
            self._n_calls += 1
            self._reader = self._syntax.arguments.reader(self._tools[found["name"]])
            events.append(CallBegin(found["name"]))
        return events

    def _skip_separators(self) -> bool:
        """Remove what is between calls or after the last; return whether the next text is certain."""
        self._pending = self._pending.lstrip(self._patterns.separators)
        for end in self._patterns.ends:
            if self._pending.startswith(end):
                self._pending = self._pending[len(end) :]
                return self._skip_separators()
        return not any(end.startswith(self._pending) for end in self._patterns.ends)

    def _take_text(self, size: int) -> list[OutputEvent]:
        text, self._pending = self._pending[:size], self._pending[size:]
        self._has_text = self._has_text or bool(text)
        self._is_between = self._is_between and not text
        return [TextDelta(text)] if text else []

    def _read_arguments(self) -> list[OutputEvent]:
        assert self._reader is not None
        arguments, size = self._reader.read(self._pending)
        self._pending = self._pending[size:]
        events: list[OutputEvent] = [ArgumentsDelta(arguments)] if arguments else []
        if self._reader.is_complete:
            if self._patterns.closing.pattern:
                self._position = _Position.closing
            else:
                events.append(self._end_call())
        return events

    def _read_closing(self) -> list[OutputEvent]:
        found = self._patterns.closing.match(self._pending, partial=True)
        if found is not None and found.partial:
            return []
        self._pending = self._pending[found.end() if found else 0 :]
        return [self._end_call()]

    def _end_call(self) -> CallEnd:
        self._position, self._is_between = _Position.text, True
        return CallEnd()
