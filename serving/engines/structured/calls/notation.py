"""Notations of values other than JSON: the rules of a schema in them."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from serving.engines.structured.calls.arguments import ArgumentsReader
from serving.engines.structured.calls.notation_reader import NotationReader
from serving.engines.structured.calls.raw_text import escape, raw_text_rule
from serving.engines.structured.calls.schemas import (
    alternatives,
    constants,
    members,
    refuse_unknown_keywords,
)
from serving.engines.structured.calls.tool import Tool
from serving.engines.structured.grammar import GrammarInvalid, Vocabulary
from serving.engines.structured.json_schema import Schema, check_bounds, check_size

ANY_NAME = "[a-zA-Z_][a-zA-Z0-9_]{0,63}"


@dataclass(frozen=True)
class NotationArguments:
    """Arguments in a notation of their own, from after their opening bracket to the closing one.

    Strings are between two `delimiter`s as they are; without one they are literals of Python. The top level
    writes `assign` after a name, and inner objects a colon.
    """

    closing: str
    assign: str
    comma: str = ","
    delimiter: str | None = None
    is_sorted: bool = False
    """Whether the family's templates sort the names of arguments."""

    @property
    def is_python(self) -> bool:
        """Whether values are literals of Python."""
        return self.delimiter is None

    def rules(self, rule: str, tool: Tool, vocabulary: Vocabulary, compact: bool) -> str:
        """Return the rules of the arguments and of all parts of their schema."""
        lines, size = [], 0
        for line in _Rules(self, rule, tool, vocabulary, compact).lines():
            lines.append(line)
            size += len(line)
            check_size(size)
        return "\n".join(lines)

    def reader(self, tool: Tool) -> ArgumentsReader:
        """Return a reader of the notation."""
        return NotationReader(self.delimiter, self.closing)


class _Rules:
    """The rules of one tool's arguments; a schema to which references lead has one rule."""

    def __init__(
        self, notation: NotationArguments, rule: str, tool: Tool, vocabulary: Vocabulary, compact: bool
    ) -> None:
        self._notation, self._rule, self._tool = notation, rule, tool
        self._vocabulary, self._compact = vocabulary, compact
        self._root = tool.parameters
        # The rules of schemas, by their reference or identity; those in `_open` are not written yet.
        self._names: dict[str | int, str] = {}
        self._open: list[tuple[str, Any]] = []
        comma = re.sub(" $", " ?", escape(notation.comma))
        self._comma = f"/{comma}/"

    def lines(self) -> Iterator[str]:
        """Yield the rule of the arguments, then those of the values in them."""
        check_bounds(self._root)
        found = alternatives(self._root, self._root)
        if len(found) != 1 or constants(found[0]) is not None:
            if self._tool.is_strict:
                raise GrammarInvalid("alternatives of all arguments cannot be enforced in this form of calls")
            found = [{"type": "object"}]
        yield from self._object(self._rule, found[0], "", self._notation.closing, self._notation.assign)
        while self._open:
            rule, schema = self._open.pop()
            yield from self._value(rule, schema)

    def _name(self, schema: Any) -> str:
        """Return the rule of the values of a schema, which is written later."""
        is_reference = isinstance(schema, dict) and "$ref" in schema
        key = json.dumps(schema) if is_reference else id(schema)
        if key not in self._names:
            self._names[key] = f"{self._rule}_{len(self._names)}"
            self._open.append((self._names[key], schema))
        return self._names[key]

    def _value(self, rule: str, schema: Any) -> Iterator[str]:
        choices = []
        for number, one in enumerate(alternatives(schema, self._root)):
            if self._tool.is_strict:
                refuse_unknown_keywords(one)
            part = f"{rule}_{number}"
            choices.append(part)
            values = constants(one)
            if values is not None:
                yield f"{part}: {' | '.join(map(self._literal, values))}"
            else:
                yield from self._typed(part, one)
        yield f"{rule}: {' | '.join(choices)}"

    def _typed(self, rule: str, schema: Schema) -> Iterator[str]:
        name = schema["type"]
        if name == "object":
            yield from self._object(rule, schema, "{", "}", ":")
        elif name == "array":
            yield self._array(rule, schema)
        elif name == "string":
            yield from self._string(rule, schema)
        elif name == "boolean" and self._notation.is_python:
            yield f'{rule}: "True" | "False" | "true" | "false"'
        elif name == "null" and self._notation.is_python:
            yield f'{rule}: "None" | "null"'
        else:
            yield f"{rule}: {self._tool.json_rule(schema, self._compact)}"

    def _string(self, rule: str, schema: Schema) -> Iterator[str]:
        delimiter, lenient = self._notation.delimiter, not self._tool.is_strict
        if delimiter is None:
            # Every string of JSON that the compiler generates is one of Python.
            single = r"""/'([^'\\\x00-\x1f]|\\['"\\nrt])*'/"""
            limited = any(keyword in schema for keyword in ("pattern", "format", "minLength", "maxLength"))
            yield f"{rule}: {self._tool.json_rule(schema, self._compact)}{'' if limited else f' | {single}'}"
        else:
            yield f"{rule}: {self._vocabulary.terminal(delimiter)} {rule}_body"
            yield raw_text_rule(f"{rule}_body", schema, delimiter, self._vocabulary, lenient)

    def _array(self, rule: str, schema: Schema) -> str:
        low, high = schema.get("minItems", 0), schema.get("maxItems")
        if high == 0:
            return f'{rule}: "[" "]"'
        item = self._name(schema.get("items", True))
        more = f"({self._comma} {item}){{{max(low - 1, 0)},{'' if high is None else high - 1}}}"
        items = f"{item} {more}"
        return f'{rule}: "[" {items if low else f"({items})?"} "]"'

    def _object(self, rule: str, schema: Schema, opening: str, closing: str, assign: str) -> Iterator[str]:
        """Yield the rules of an object whose members are in the order of the schema.

        `first` rules begin at a member without a comma before it, `more` rules with one.
        """
        found = list(members(schema).items())
        if self._notation.is_sorted:
            found.sort(key=lambda member: member[0].lower())
        required = schema.get("required") or []
        before = f"{json.dumps(opening)} " if opening else ""
        yield f"{rule}: {before}{rule}_first0 {json.dumps(closing)}"
        for number, (name, value) in enumerate(found):
            member = f"{self._key(name, assign)} {self._name(value)} {rule}_more{number + 1}"
            skipped = "" if name in required else " | {}"
            yield f"{rule}_first{number}: {member}{skipped.format(f'{rule}_first{number + 1}')}"
            yield f"{rule}_more{number}: {self._comma} {member}{skipped.format(f'{rule}_more{number + 1}')}"
        yield from self._others(rule, schema, len(found), assign)

    def _others(self, rule: str, schema: Schema, number: int, assign: str) -> Iterator[str]:
        """Yield the rules of members that the schema does not name, if it describes them or names none."""
        extra = schema.get("additionalProperties", True)
        if extra is False or (number and not isinstance(extra, dict)):
            yield f'{rule}_first{number}: ""\n{rule}_more{number}: ""'
            return
        name = (
            f"/'{ANY_NAME}'|\"{ANY_NAME}\"/"
            if self._notation.is_python and assign == ":"
            else f"/{ANY_NAME}/"
        )
        member = f"{name} {self._assign(assign)} {self._name(extra)}"
        yield f"{rule}_other: {member}"
        yield f'{rule}_first{number}: "" | {rule}_other ({self._comma} {rule}_other)*'
        yield f"{rule}_more{number}: ({self._comma} {rule}_other)*"

    def _key(self, name: str, assign: str) -> str:
        if self._notation.is_python and assign == ":":
            text = self._literal(name)
        elif re.fullmatch(r"[^\s,:={}()\[\]'\"]+", name) and (self._notation.delimiter or "\n") not in name:
            text = self._vocabulary.terminal(name)
        else:
            raise GrammarInvalid(f"the name {name!r} cannot be written in this form of calls")
        return f"{text} {self._assign(assign)}"

    def _assign(self, assign: str) -> str:
        return r"/: ?/" if assign == ":" and self._notation.is_python else json.dumps(assign)

    def _literal(self, value: Any) -> str:
        """Return the terminals of a constant."""
        notation = self._notation
        if isinstance(value, str) and notation.delimiter is not None:
            if notation.delimiter in value:
                raise GrammarInvalid(f"{value!r} contains the family's delimiter of strings")
            delimiter = self._vocabulary.terminal(notation.delimiter)
            return (
                f"{delimiter} {self._vocabulary.terminal(value)} {delimiter}"
                if value
                else f"{delimiter} {delimiter}"
            )
        if isinstance(value, str):
            double = json.dumps(value, ensure_ascii=False)
            return f"({_quoted(double)} | {_quoted(_single(double))})"
        if isinstance(value, list):
            return f'"[" {f" {self._comma} ".join(map(self._literal, value))} "]"'
        if isinstance(value, dict):
            members = [f"{self._key(name, ':')} {self._literal(member)}" for name, member in value.items()]
            return f'"{{" {f" {self._comma} ".join(members)} "}}"'
        names = {True: "True", False: "False", None: "None"} if notation.is_python else {}
        plain = isinstance(value, bool) or value is None
        return _quoted(names.get(value, json.dumps(value)) if plain else json.dumps(value))


def _single(double: str) -> str:
    """Return a string of JSON in single quotation marks."""
    return "'" + double[1:-1].replace('\\"', '"').replace("'", "\\'") + "'"


def _quoted(text: str) -> str:
    """Return the terminal of a literal text."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
