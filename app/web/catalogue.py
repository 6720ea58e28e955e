"""The texts of the pages by language: `texts/<language>/<view>.yaml`, with the same keys in each language."""

import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from starlette.requests import Request

FOLDER = Path(__file__).with_name("texts")
COOKIE = "tunesmith_language"


class Language(StrEnum):
    """A language of the pages."""

    en = "en"
    ko = "ko"


# Each language is listed under its own name.
LANGUAGE_NAMES = {Language.en: "English", Language.ko: "한국어"}

DIRECTIONS = re.compile("[\u202a-\u202e\u2066-\u2069]")
ISOLATES = re.compile("[\u2066-\u2069]")
FIRST_STRONG_ISOLATE, POP_ISOLATE = "\u2068", "\u2069"

Translate = Callable[..., str]


@cache
def load_texts(language: Language) -> Mapping[str, str | dict[str, str]]:
    """Return the texts of a language by their keys, such as `jobs.title`; plurals have several forms."""
    texts: dict[str, str | dict[str, str]] = {}
    for path in sorted((FOLDER / language).glob("*.yaml")):
        _flatten(texts, path.stem, yaml.safe_load(path.read_text(encoding="utf-8")))
    return texts


@cache
def translator(language: Language) -> Translate:
    """Return the function that looks up a text and fills in its values.

    Of a text with the forms `one` and `other`, the value `n` selects the form.
    """
    texts = load_texts(language)

    def translate(key: str, /, **values: Any) -> str:
        text = texts[key]
        if isinstance(text, dict):
            text = text["one"] if values["n"] == 1 and "one" in text else text["other"]
        return text.format(**{name: isolate(value) for name, value in values.items()}) if values else text

    return translate


def isolate(value: Any) -> Any:
    """Return a value whose characters of direction, which old names may have, end with it."""
    if not isinstance(value, str) or not DIRECTIONS.search(value):
        return value
    # What is isolated ends its embeddings and overrides, but an isolate of its own could end ours.
    return f"{FIRST_STRONG_ISOLATE}{ISOLATES.sub('', value)}{POP_ISOLATE}"


def has_text(language: Language, key: str) -> bool:
    """Return whether the catalogue has a key, for names that others choose, such as those of metrics."""
    return key in load_texts(language)


def choose_language(request: Request) -> Language:
    """Return the language of the cookie, or the first one of the browser's that there is."""
    if (chosen := request.cookies.get(COOKIE)) in set(Language):
        return Language(chosen)
    for part in request.headers.get("accept-language", "").split(","):
        if (code := part.partition(";")[0].strip().partition("-")[0].lower()) in set(Language):
            return Language(code)
    return Language.en


def _flatten(texts: dict[str, str | dict[str, str]], prefix: str, node: Any) -> None:
    if isinstance(node, dict) and "other" not in node:
        for key, value in node.items():
            _flatten(texts, f"{prefix}.{key}", value)
    else:
        texts[prefix] = node
