"""Removal of what chat models write around a translation: thinking, code fences, labels, quotation marks.

A rule changes a text only where it certainly matches: a quotation of the source stays, and so does a label
that the source has too. All patterns take linear time.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

# Part of a score's signature: increase it when a rule changes.
VERSION: Final = 1
# A fence may contain a label before a quotation; more layers do not occur.
MAX_PASSES: Final = 8


class Cleaning(StrEnum):
    """What is removed from a response."""

    thinking = "thinking"
    code_fence = "code_fence"
    repeated_source = "repeated_source"
    label = "label"
    quotes = "quotes"


@dataclass(frozen=True)
class CleanResponse:
    """A response without what was removed, and the kinds of cleaning in their order."""

    text: str
    cleanings: tuple[Cleaning, ...] = ()


def clean_response(response: str, source: str = "") -> CleanResponse:
    """Return the response without wrapping; unchanged, white space included, where no rule matches.

    `source` is the text that was translated, or the whole request if that is unknown.
    """
    text, source, found = response, source.strip(), list[Cleaning]()
    for _ in range(MAX_PASSES):
        for cleaning, rule in _RULES.items():
            changed = rule(text.strip(), source)
            if changed is not None:
                text = changed.strip()
                found.append(cleaning)
                break
        else:
            break
    return CleanResponse(text, tuple(dict.fromkeys(found)))


_TAGS: Final = "think|thinking|thought|reasoning"
_THINKING: Final = re.compile(rf"<({_TAGS})>(?:.*?</\1>|.*\Z)", re.DOTALL | re.IGNORECASE)
_THINKING_END: Final = re.compile(rf"</(?:{_TAGS})>", re.IGNORECASE)
_THINKING_TAG: Final = re.compile(rf"</?(?:{_TAGS})>", re.IGNORECASE)


def _without_thinking(text: str, source: str) -> str | None:
    """Remove a block at the beginning; one without an end is a response that was cut off before its answer.

    The beginning may be missing: some templates write it into the prompt.
    """
    if _THINKING_TAG.search(source):
        return None
    if match := _THINKING.match(text):
        return text[match.end() :]
    first = _THINKING_TAG.search(text)
    if first and first.group().startswith("</"):
        return text[first.end() :]
    return None


_FENCE: Final = re.compile(r"```[\w+-]{0,20}[ \t]*\n([^`]*)\n[ \t]*```|```([^`\n]+)```")


def _without_fence(text: str, source: str) -> str | None:
    """Remove a fence around the whole text."""
    match = _FENCE.fullmatch(text)
    if match is None or "```" in source or not (content := match[1] or match[2] or "").strip():
        return None
    return content


_SOURCE_LABEL: Final = re.compile(
    r"[*_]{0,2}(?:original|source|input|korean|english|원문|입력|한국어|영어)(?: ?(?:text|sentence|문장))?"
    r"[*_]{0,2} ?[:：][*_]{0,2}\s*",
    re.IGNORECASE,
)
_ARROW: Final = re.compile(r"[ \t]*(?:\n|->|=>|→|⇒)\s*")
MIN_SOURCE_LETTERS: Final = 2


def _without_source(text: str, source: str) -> str | None:
    """Remove the source at the beginning, if the translation follows on a new line or after an arrow."""
    if sum(map(str.isalpha, source)) < MIN_SOURCE_LETTERS:
        return None
    label = _SOURCE_LABEL.match(text)
    rest = text[label.end() :] if label else text
    for quotation in (source, *(f"{left}{source}{right}" for left, right in QUOTES.items())):
        if rest.startswith(quotation) and (arrow := _ARROW.match(rest, len(quotation))):
            return rest[arrow.end() :].strip() or None
    return None


_LANGUAGE: Final = "english|korean|japanese|chinese"
_KOREAN_LANGUAGE: Final = "영어|영문|한국어|한글|국문|일본어|중국어"
_COLON: Final = r"[*_]{0,2} ?[:：][*_]{0,2}"
_ADJECTIVES: Final = rf"(?:(?:{_LANGUAGE}|natural|literal|direct|requested|corresponding|translated) ){{0,3}}"
_TRANSLATION: Final = r"(?:translation|translated (?:text|sentence|version)|text|version)"
_POLITE: Final = r"(?:(?:sure|certainly|of course|okay|ok|absolutely|yes)[,.!:] ?(?:thing! )?)?"
_KOREAN_POLITE: Final = r"(?:(?:네|예|물론입니다|물론이죠|알겠습니다|좋습니다)[,.!] ?)?"
_LEAD_IN: Final = re.compile(
    rf"{_POLITE}(?:here(?:'s|’s| is)|this is|below is) (?:the|a|an|my|your) {_ADJECTIVES}{_TRANSLATION}"
    rf"(?: (?:of|in|into|to|for) [\w ]{{1,40}})?{_COLON}"
    rf"|{_POLITE}(?:the|my) {_ADJECTIVES}translation(?: of [\w ]{{1,40}})? (?:is|would be|reads)"
    rf"(?: as follows)?{_COLON}"
    rf"|{_KOREAN_POLITE}(?:다음은|아래는) (?:요청하신 |해당 )?(?:(?:문장|글|텍스트)의 )?"
    rf"(?:(?:{_KOREAN_LANGUAGE}) ?)?번역(?:문|본| ?결과)?(?:입니다|이에요|예요)(?:{_COLON}|\.?[ \t]*\n)"
    rf"|{_KOREAN_POLITE}(?:(?:{_KOREAN_LANGUAGE}) ?)?번역(?:문|본| ?결과)?[은는] (?:다음|아래)과 같습니다"
    rf"(?:{_COLON}|\.?[ \t]*\n)"
    rf"|{_KOREAN_POLITE}(?:{_KOREAN_LANGUAGE})로 번역하면 (?:다음|아래)과 같습니다(?:{_COLON}|\.?[ \t]*\n)",
    re.IGNORECASE,
)
_LABEL: Final = re.compile(
    rf"[*_#]{{0,3}} ?(?:(?:{_LANGUAGE}) )?(?:translation|translated (?:text|sentence))"
    rf"(?: \((?:{_LANGUAGE})\))?{_COLON}"
    rf"|[*_#]{{0,3}} ?(?:(?:{_KOREAN_LANGUAGE}) ?)?번역(?:문|본| ?결과)?{_COLON}"
    rf"|[*_#]{{0,3}} ?(?:{_LANGUAGE}|{_KOREAN_LANGUAGE}){_COLON}"
    rf"|#{{1,4}} (?:(?:{_LANGUAGE}) )?translation[ \t]*\n|#{{1,4}} (?:(?:{_KOREAN_LANGUAGE}) ?)?번역[ \t]*\n",
    re.IGNORECASE,
)
_SOURCE_WITH_LABEL: Final = re.compile(r"^([^:：\n]{1,40})[:：][ \t]*\S", re.MULTILINE)
_REQUEST: Final = re.compile(
    r"translat(?:e|ing)\b|render|convert|following|번역(?:하|해)|옮기|옮겨|다음 ", re.IGNORECASE
)


def _without_label(text: str, source: str) -> str | None:
    """Remove a label such as `Translation:`, or a sentence such as `Here is the translation:`."""
    match = _LEAD_IN.match(text) or _LABEL.match(text)
    if match is None or not text[match.end() :].strip() or _begins_with_label(source):
        return None
    return text[match.end() :]


def _begins_with_label(source: str) -> bool:
    """Return whether a line of the source begins with a label, whose translation is a label too.

    A request is not a label, nor is anything in a source that ends with one for the model to complete.
    """
    if source.endswith((":", "：")):
        return False
    return any(not _REQUEST.search(match[1]) for match in _SOURCE_WITH_LABEL.finditer(source))


QUOTES: Final = {'"': '"', "“": "”", "'": "'", "‘": "’", "「": "」", "『": "』", "«": "»", "„": "“"}
# An apostrophe within a word is not a quotation mark.
_QUOTATION_MARK: Final = re.compile(r"[\"`“”‘„‟‚‛«»‹›「」『』《》〈〉＂]|(?<!\w)['’′]|['’′](?!\w)")


def _without_quotes(text: str, source: str) -> str | None:
    """Remove quotation marks around the whole text, unless the source contains any.

    A translation may quote as a whole what its source quotes in part.
    """
    right = QUOTES.get(text[:1])
    inner = text[1:-1]
    if right is None or len(text) < 3 or text[-1] != right or not inner.strip():
        return None
    if text[0] in inner or right in inner or _QUOTATION_MARK.search(source):
        return None
    return inner


_RULES: Final[dict[Cleaning, Callable[[str, str], str | None]]] = {
    Cleaning.thinking: _without_thinking,
    Cleaning.code_fence: _without_fence,
    Cleaning.repeated_source: _without_source,
    Cleaning.label: _without_label,
    Cleaning.quotes: _without_quotes,
}
