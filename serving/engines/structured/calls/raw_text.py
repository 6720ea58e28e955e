"""Strings without quotation marks, which end with a text that they cannot contain."""

import re
from typing import Any

from serving.engines.structured.grammar import GrammarInvalid, Vocabulary
from serving.engines.structured.json_schema import Schema

_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})"
_DATE = r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
_HEX = "[0-9a-fA-F]"
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_LABEL = "[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
# RFC 3339, RFC 4122, RFC 1123 and the ASCII part of RFC 5321, as in llguidance's JSON.
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}",
    "ipv4": rf"{_BYTE}(\.{_BYTE}){{3}}",
    "hostname": rf"{_LABEL}(\.{_LABEL})*",
    "email": rf"[a-zA-Z0-9_+-]+(\.[a-zA-Z0-9_+-]+)*@{_LABEL}(\.{_LABEL})+",
}


def raw_text_rule(rule: str, schema: Schema, end: str, vocabulary: Vocabulary, lenient: bool) -> str:
    """Return the rule of a text that a schema of strings accepts, and of the text `end` after it.

    `end` may be the name of a special token, which no text contains. A line feed in it may be missing.

    Raises:
        GrammarInvalid: The schema has a format or pattern that cannot be enforced, and is not lenient.
    """
    body = _body(schema, lenient)
    token = end.strip("\n")
    closing = "\\n?" if end.startswith("\n") else ""
    if token in vocabulary.special_ids:
        text = f"/{body or '(?s:.*)'}{closing}/"
        return f"{rule}: {rule}_text {vocabulary.terminal(token)}\n{rule}_text: {text}"
    closing += escape(token)
    if body is None:
        # A lazy terminal ends with the first occurrence.
        return f"{rule}[lazy]: /(?s:.*){closing}/"
    return f"{rule}: {rule.upper()}\n{rule.upper()}: /{body}{closing}/ & ~/(?s:.*{escape(token)}.+)/"


def constant_rule(rule: str, values: list[str], end: str, vocabulary: Vocabulary) -> str:
    """Return the rule of one of several texts and of the text `end` after it."""
    texts = " | ".join(vocabulary.terminal(value) for value in values)
    return f"{rule}: ({texts}) {end_terminals(end, vocabulary)}"


def end_terminals(end: str, vocabulary: Vocabulary) -> str:
    """Return the terminals of the text `end`, which may be the name of a special token.

    A line feed in it may be missing. It is part of one terminal, as the lexer takes the longest one.
    """
    token = end.strip("\n")
    before = r"\n?" if end.startswith("\n") else ""
    if token not in vocabulary.special_ids:
        return f"/{before}{escape(token)}/"
    return f"{f'/{before}/' if before else ''} {vocabulary.terminal(token)}"


def escape(text: str) -> str:
    """Return a pattern of a literal text between the slashes of a grammar."""
    return re.sub(r"([\\^$.|?*+()\[\]{}/&~#-])", r"\\\1", text).replace("\n", r"\n")


def _body(schema: Schema, lenient: bool) -> str | None:
    """Return the pattern of a string; None for any."""
    if isinstance(pattern := schema.get("pattern"), str):
        return _unanchored(pattern)
    if (name := schema.get("format")) is not None:
        if name in FORMATS:
            return FORMATS[name].replace("/", r"\/")
        if not lenient:
            raise GrammarInvalid(f"the format {name!r} cannot be enforced in this form of calls")
    low, high = _length(schema, "minLength"), _length(schema, "maxLength")
    if low is None and high is None:
        return None
    return f"(?s:.{{{low or 0},{'' if high is None else high}}})"


def _length(schema: Schema, name: str) -> int | None:
    value: Any = schema.get(name)
    return value if isinstance(value, int) else None


def _unanchored(pattern: str) -> str:
    """Return a pattern that matches a whole text where the given one may match a part of it."""
    begins, ends = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith(r"\$")
    inner = pattern[1 if begins else 0 : len(pattern) - 1 if ends else None]
    inner = re.sub(r"(?<!\\)/", r"\/", inner)
    return f"{'' if begins else '(?s:.*)'}({inner}){'' if ends else '(?s:.*)'}"
