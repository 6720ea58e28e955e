"""Arguments between tags, each under its name: strings as they are, other values as JSON."""

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import regex

from serving.engines.structured.calls.arguments import ArgumentsReader, ends_in_string
from serving.engines.structured.calls.raw_text import constant_rule, end_terminals, escape, raw_text_rule
from serving.engines.structured.calls.schemas import (
    alternatives,
    constants,
    members,
    refuse_unknown_keywords,
    resolve,
    value_types,
)
from serving.engines.structured.calls.tool import Tool
from serving.engines.structured.grammar import GrammarInvalid, Vocabulary
from serving.engines.structured.json_schema import Schema, SchemaTooComplex, check_bounds, check_size

# The order in which a text is tried, as in vLLM's coerce_to_schema_type; a string is the last.
TYPE_ORDER = ("null", "integer", "number", "boolean", "object", "array")
TEXT = frozenset({"string"})
MAX_COPIED_CHARACTERS = 2**22
NOTHING = '""'
NAME = r"[^\n<>]+"
ANY_KEY = "[a-zA-Z_][a-zA-Z0-9_.-]{0,63}"


@dataclass(frozen=True)
class TaggedArguments:
    """Arguments that each have a name between `before_name` and `after_name`, and end with `after_value`.

    A line feed at the end of `after_name` and at the beginning of `after_value` belongs to the tags. Others
    between the tags may be missing.
    """

    before_name: str
    after_name: str
    after_value: str

    @property
    def is_wrapped(self) -> bool:
        """Whether a value has lines of its own."""
        return self.after_value.startswith("\n")

    def rules(self, rule: str, tool: Tool, vocabulary: Vocabulary, compact: bool) -> str:
        """Return the rules of the parameters in the order of the schema, those that are required always."""
        check_bounds(tool.parameters)
        schema = resolve(tool.parameters, tool.parameters)
        if not tool.is_strict and {"anyOf", "oneOf", "allOf"} & set(schema):
            schema = {}
        if tool.is_strict:
            refuse_unknown_keywords(schema)
            if unsupported := sorted({"anyOf", "oneOf", "allOf", "enum", "const"} & set(schema)):
                raise GrammarInvalid(f"the keyword {unsupported[0]!r} of all arguments cannot be enforced")
        properties, required = members(schema), schema.get("required") or []
        _check_copies(tool.parameters, properties)
        parts, lines = [], []
        size = 0
        for number, (name, value) in enumerate(properties.items()):
            if not regex.fullmatch(NAME, name) or name != name.strip():
                raise GrammarInvalid(f"the name {name!r} cannot be written in this form of calls")
            part = f"{rule}_{number}"
            parts.append(part if name in required else f"{part}?")
            lines.append(f"{part}: {self._opening(escape(name))} {part}_value")
            lines.append(self._value_rule(f"{part}_value", value, tool, vocabulary, compact))
            size += len(lines[-1])
            check_size(size)
        extra = schema.get("additionalProperties", True)
        if not properties and extra is not False:
            parts.append(f"{rule}_any*")
            lines.append(f"{rule}_any: {self._opening(ANY_KEY)} {rule}_any_value")
            lines.append(self._value_rule(f"{rule}_any_value", extra, tool, vocabulary, compact))
        return "\n".join([f"{rule}: {' '.join(parts) or NOTHING}", *lines])

    def reader(self, tool: Tool) -> ArgumentsReader:
        """Return a reader that decides the type of a value by the schema of its parameter."""
        try:
            root = tool.parameters
            schema = resolve(root, root)
            found = [*members(schema).items(), ("", schema.get("additionalProperties"))]
            types = {
                name: value_types(one, root) if isinstance(one, dict) and one else TEXT for name, one in found
            }
            others = types.pop("")
        except GrammarInvalid:
            types, others = {}, TEXT
        return TaggedReader(self, types, others)

    def _opening(self, name: str) -> str:
        return rf"/\n?{escape(self.before_name)}{name}{_optional_lines(self.after_name)}/"

    def _value_rule(self, rule: str, schema: Any, tool: Tool, vocabulary: Vocabulary, compact: bool) -> str:
        """Return the rule of a value and of the tag after it."""
        lenient, lines, choices = not tool.is_strict, [], []
        size = 0
        # A text is a string where the schema does not say anything else, as in vLLM.
        known = schema if isinstance(schema, dict) and schema else {"type": "string"}
        for number, one in enumerate(alternatives(known, tool.parameters)):
            if tool.is_strict:
                refuse_unknown_keywords(one)
            part = f"{rule}_{number}"
            choices.append(part)
            values = constants(one)
            if values is not None:
                texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
                if any(self.after_value.strip("\n") in text for text in texts):
                    raise GrammarInvalid(
                        f"a constant contains {self.after_value.strip()}, which ends its text"
                    )
                lines.append(constant_rule(part, texts, self.after_value, vocabulary))
            elif one["type"] == "string":
                lines.append(raw_text_rule(part, one, self.after_value, vocabulary, lenient))
            else:
                lines.append(f"{part}: {part}_json {end_terminals(self.after_value, vocabulary)}")
                lines.append(f"{part}_json: {self._json_rule(one, tool, compact)}")
                size += len(lines[-1])
                check_size(size)
        return "\n".join([f"{rule}: {' | '.join(choices)}", *lines])

    def _json_rule(self, schema: Schema, tool: Tool, compact: bool) -> str:
        if schema["type"] == "boolean":
            # Templates that write `value | string` show Python's names.
            return '"true" | "false" | "True" | "False"'
        return tool.json_rule({**schema, **_definitions(tool.parameters)}, compact)


class TaggedReader:
    """Reads arguments between tags; strings are passed on while they arrive."""

    def __init__(
        self, form: TaggedArguments, types: Mapping[str, frozenset[str]], others: frozenset[str]
    ) -> None:
        self.is_complete = False
        self._form = form
        self._types, self._others = types, others
        last = form.after_value.strip("\n")
        name, after = f"(?P<name>{NAME}?)", form.after_name.strip("\n")
        between = r"\s*".join(map(regex.escape, after.split("\n")))
        self._key = regex.compile(rf"\s*{regex.escape(form.before_name)}{name}{between}")
        self._end = regex.compile(("\n?" if form.is_wrapped else "") + regex.escape(last))
        self._n_arguments = 0
        self._name: str | None = None
        self._is_first = False
        # The text of a value whose type is not decided; None within a string.
        self._value: str | None = ""

    def read(self, text: str) -> tuple[str, int]:
        """Return the JSON of a piece, and how many of its characters were read."""
        if self._name is None:
            return self._read_name(text)
        skipped = 0
        if self._is_first and self._form.is_wrapped and text:
            skipped = int(text.startswith("\n"))
            text = text[skipped:]
        self._is_first = self._is_first and not (text or skipped)
        found = self._find_end(text)
        value = text if found is None else text[: found.start()]
        json_text = self._pass_on(value)
        if found is None or found.partial:
            return json_text, skipped + len(value)
        json_text += self._end_value()
        return json_text, skipped + found.end()

    def _find_end(self, text: str) -> "regex.Match[str] | None":
        """Return where the tag after the value begins; strings of an object or an array may contain it."""
        found = self._end.search(text, partial=True)
        while found and not found.partial and self._is_in_string(text[: found.start()]):
            found = self._end.search(text, found.start() + 1, partial=True)
        return found

    def _is_in_string(self, text: str) -> bool:
        if self._value is None or "string" in self._known_types():
            return False
        value = (self._value + text).lstrip()
        return value.startswith(("{", "[")) and ends_in_string(value)

    def _read_name(self, text: str) -> tuple[str, int]:
        found = self._key.match(text, partial=True)
        if found is None:
            self.is_complete = True
            return ("{}" if self._n_arguments == 0 else "}"), len(text) - len(text.lstrip())
        if found.partial:
            return "", 0
        self._name, self._value, self._is_first = found["name"].strip(), "", True
        self._n_arguments += 1
        opening = "{" if self._n_arguments == 1 else ", "
        head = f"{opening}{json.dumps(self._name, ensure_ascii=False)}: "
        return head + ("" if self._may_be_other("") else self._begin_string()), found.end()

    def _pass_on(self, text: str) -> str:
        if self._value is None:
            return _escape(text)
        self._value += text
        if self._may_be_other(self._value):
            return ""
        value = self._value
        return self._begin_string() + _escape(value)

    def _begin_string(self) -> str:
        self._value = None
        return '"'

    def _may_be_other(self, value: str) -> bool:
        """Return whether a value that begins so may be anything but a string."""
        types = self._known_types()
        if types <= TEXT:
            return False
        return types != {"string", "null"} or "null".startswith(value.lower())

    def _known_types(self) -> frozenset[str]:
        return self._types.get(self._name or "", self._others)

    def _end_value(self) -> str:
        types, value, self._name = self._known_types(), self._value, None
        return '"' if value is None else json.dumps(convert(value, types), ensure_ascii=False)


def _definitions(root: Schema) -> Schema:
    """Return the parts of a schema to which references lead; each value's rule gets a copy."""
    return {name: root[name] for name in ("$defs", "definitions") if name in root}


def _check_copies(root: Schema, properties: Schema) -> None:
    size = len(properties) * len(json.dumps(_definitions(root)))
    if size > MAX_COPIED_CHARACTERS:
        raise SchemaTooComplex(
            f"its definitions have {size:,} characters if each parameter has a copy, and may have "
            f"{MAX_COPIED_CHARACTERS:,}"
        )


def convert(text: str, types: frozenset[str]) -> Any:
    """Return the value of a text by the first of its parameter's types that it fits."""
    for name in TYPE_ORDER:
        if name in types:
            with contextlib.suppress(ValueError):
                return _CONVERSIONS[name](text)
    if "string" in types:
        return text
    try:
        return _finite(json.loads(text))
    except ValueError:
        return text


def _null(text: str) -> None:
    if text.lower() != "null":
        raise ValueError(text)


def _number(text: str) -> float | int:
    value = float(_finite(float(text)))
    return int(value) if value == int(value) else value


def _boolean(text: str) -> bool:
    name = text.strip().lower()
    if name not in ("true", "1", "false", "0"):
        raise ValueError(text)
    return name in ("true", "1")


def _finite(value: Any) -> Any:
    """Return a value that JSON can express. Raises ValueError."""
    json.dumps(value, allow_nan=False)
    return value


def _container(text: str, kind: type) -> Any:
    value = _finite(json.loads(text))
    if not isinstance(value, kind):
        raise ValueError(text)
    return value


_CONVERSIONS: dict[str, Callable[[str], Any]] = {
    "null": _null,
    "integer": int,
    "number": _number,
    "boolean": _boolean,
    "object": lambda text: _container(text, dict),
    "array": lambda text: _container(text, list),
}


def _escape(text: str) -> str:
    """Return a piece of a string as it is within quotation marks."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _optional_lines(text: str) -> str:
    """Return the pattern of a text between the slashes of a grammar; its line feeds may be missing."""
    return r"\n?".join(map(escape, text.split("\n")))
