"""How a family of models writes calls of tools: as a grammar to generate them, and as patterns to read them.

The grammar is stricter than vLLM's parsers of the same name: the name comes before the arguments, and white
space is limited. Both forms are made from the same parts, so that every call that the grammar allows can be
read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import regex

from serving.engines.structured.calls.arguments import ArgumentsForm
from serving.engines.structured.calls.tool import Tool
from serving.engines.structured.grammar import Vocabulary
from serving.engines.structured.json_schema import check_size
from trainers.configs.engines import ToolCallParser

CALL = "call"
ARGUMENTS = "arguments"
NAME_END = r"(?=[^a-zA-Z0-9_.-])"


@dataclass(frozen=True)
class CallPatterns:
    """Patterns by which calls are found in a text; `name` is a group of both opening ones.

    `first_opening` reaches from the beginning of the calls to the arguments of the first, `next_opening`
    from the end of a call to the arguments of the next one; `closing` follows the arguments. What is between
    calls and after the last consists of the characters in `separators` and of the texts in `ends`.
    """

    first_opening: "regex.Pattern[str]"
    next_opening: "regex.Pattern[str]"
    closing: "regex.Pattern[str]"
    separators: str
    ends: tuple[str, ...]
    only_at_start: bool


@dataclass(frozen=True)
class CallSyntax:
    """The calls of one family.

    `begin` and `end` enclose all calls; `before` and `after` enclose each, and `between` is between its name
    and its arguments; `separator` is between two calls. All are literal texts, in which spaces and line feeds
    may be missing. `markers` are parts of them that may be special tokens, and `optional` those parts that a
    model may leave out.
    """

    family: ToolCallParser
    arguments: ArgumentsForm
    begin: str = ""
    before: str = ""
    between: str = ""
    after: str = ""
    separator: str = ""
    end: str = ""
    markers: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    only_at_start: bool = False
    call_id_length: int | None = None
    """The length of a call's id if templates require one."""

    def rules(self, vocabulary: Vocabulary, tools: Sequence[Tool], parallel: bool, compact: bool) -> str:
        """Return the rule `calls`, and the rules that it needs, of a grammar for calls of these tools."""
        lines = []
        size = 0
        for number, tool in enumerate(tools):
            arguments = f"{ARGUMENTS}_{number}"
            opening = self._terminals(vocabulary, self.before, tool.name, self.between)
            lines.append(f"{CALL}_{number}: {opening} {arguments}")
            lines.append(self.arguments.rules(arguments, tool, vocabulary, compact))
            size += len(lines[-1])
            check_size(size)
        alternatives = " | ".join(f"{CALL}_{number}" for number in range(len(tools)))
        separator = self._terminals(vocabulary, self.separator)
        more = f"({separator} {CALL})*" if parallel else ""
        return "\n".join(
            [
                *lines,
                f"{CALL}: ({alternatives}) {self._terminals(vocabulary, self.after)}",
                f"calls: {self._terminals(vocabulary, self.begin)} {CALL} {more} "
                f"{self._terminals(vocabulary, self.end)}",
            ]
        )

    def trigger(self, tools: Sequence[Tool]) -> "regex.Pattern[str]":
        """Return a pattern for the text with which calls begin."""
        opening = self._pattern(self.begin + self.before)
        if self.only_at_start:
            return regex.compile(rf"\A{opening}(?:{_names(tools)})")
        first = self._pieces(self.begin + self.before.lstrip())[0]
        if first in self.optional:
            return regex.compile(f"{regex.escape(first)}|{opening}(?:{_names(tools)})")
        return regex.compile(regex.escape(first))

    def patterns(self, tools: Sequence[Tool]) -> CallPatterns:
        """Return the patterns by which calls are read."""
        # Without a text after it, a name may be the beginning of another one.
        between = self._pattern(self.between) or NAME_END
        call = f"{self._pattern(self.before)}(?P<name>{_names(tools)}){between}"
        ends = [piece for piece in self._pieces(self.after) if piece in self.optional]
        return CallPatterns(
            regex.compile(rf"\s*{self._pattern(self.begin)}{call}"),
            regex.compile(call),
            # An end that may be missing is read as a separator, for which the parser does not wait.
            regex.compile("".join(map(_pattern, self._required_pieces(self.after)))),
            separators=f" \n{self.separator}",
            ends=tuple(end for piece in [*ends, *self._pieces(self.end)] if (end := piece.strip())),
            only_at_start=self.only_at_start,
        )

    def _pieces(self, text: str) -> list[str]:
        """Return a text split into its markers and what is between them."""
        known = "|".join(map(regex.escape, {*self.markers, *self.optional}))
        return [piece for piece in (regex.split(f"({known})", text) if known else [text]) if piece]

    def _required_pieces(self, text: str) -> list[str]:
        return [piece for piece in self._pieces(text) if piece not in self.optional]

    def _pattern(self, text: str) -> str:
        return "".join(
            f"(?:{_pattern(piece)})?" if piece in self.optional else _pattern(piece)
            for piece in self._pieces(text)
        )

    def _terminals(self, vocabulary: Vocabulary, *texts: str) -> str:
        """Return the terminals of a grammar for texts that follow each other; a marker may be a token.

        What is between two such tokens is one terminal, as the lexer takes the longest one.
        """
        terminals = [""]
        for piece in self._pieces("".join(texts)):
            if piece in vocabulary.special_ids:
                terminal = vocabulary.terminal(piece)
                terminals += [f"({terminal})?" if piece in self.optional else terminal, ""]
            else:
                terminals[-1] += self._pattern(piece).replace("/", r"\/")
        return " ".join(
            f"/{text}/" if number % 2 == 0 else text for number, text in enumerate(terminals) if text
        )


def _pattern(text: str) -> str:
    """Return the pattern of a text in which spaces and line feeds may be missing."""
    pattern = str(regex.escape(text, literal_spaces=True))
    return pattern.replace("\\\n", "\n").replace("\n", r"\n?").replace(" ", " ?")


def _names(tools: Sequence[Tool]) -> str:
    return "|".join(regex.escape(tool.name) for tool in sorted(tools, key=lambda tool: -len(tool.name)))
