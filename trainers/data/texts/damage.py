"""Damage in text: characters decoded with the wrong encoding, and entities of HTML that nobody decoded."""

import html
import re
from html.entities import html5
from typing import Final

from trainers.data.texts.code import blank_out_code, is_code

# How Windows-1252 and Latin-1 show the bytes that follow the first byte of a character in UTF-8.
_CP1252: Final = {bytes([byte]).decode("cp1252", "ignore"): byte for byte in range(0x80, 0xC0)}
_CONTINUATION: Final = {chr(byte): byte for byte in range(0x80, 0xC0)} | {
    character: byte for character, byte in _CP1252.items() if character
}
_TAIL: Final = f"[{re.escape(''.join(_CONTINUATION))}]"
# A letter of Greek, Cyrillic, Hebrew or Arabic alone may be sound text, such as `×±`.
_UTF8_AS_LATIN: Final = re.compile(f"[ÂÃÄÅ]{_TAIL}|(?:[Æ-ß]{_TAIL}){{2}}|[à-ï]{_TAIL}{{2}}|[ð-ô]{_TAIL}{{3}}")
# Closing quotes, dashes and the like follow an accented letter in sound text: « Spaß“ », « café… ».
_PUNCTUATION: Final = frozenset("‘’“”„‚…–—•™‹›«»°·\u00a0")
# CP949 shown as Latin-1: `¡¯` is a quotation mark, `¢æ` is €, `¾È³ç` is 안녕.
_CP949_MARK: Final = re.compile("¡[¢-¾]|¢[æç]")
_CP949_RUN: Final = re.compile("[¡-þ]{4,}")
_REPLACED: Final = re.compile("\ufffd|占쏙")
# Nearly every text has none of these, and is done after one search.
_SUSPICIOUS: Final = re.compile("[\u0080-\u00ff\ufffd占]")

_ENTITY: Final = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
# A text about markup has entities on purpose.
_MARKUP: Final = re.compile(
    r"</[a-z]|<(?:a|body|br|div|head|html|img|input|li|p|script|span|svg|table|tr|ul)\b|<[?!]|"
    r"\b(?:html|xml|entit(?:y|ies)|escap\w+|encod\w+)\b",
    re.IGNORECASE,
)


def find_mojibake(text: str) -> int | None:
    """Return the position of the first character that was decoded with the wrong encoding, or None.

    Recognized are UTF-8 read as Windows-1252, CP949 read as Latin-1, and replacement characters.
    """
    if text.isascii() or not _SUSPICIOUS.search(text):
        return None
    places = [found.start() for found in (_REPLACED.search(text), _CP949_MARK.search(text)) if found]
    places += [found.start() for found in _UTF8_AS_LATIN.finditer(text) if _is_utf8(found.group())][:1]
    places += [found.start() for found in _CP949_RUN.finditer(text) if _is_korean(found.group())][:1]
    return min(places, default=None)


def find_entity(text: str) -> int | None:
    """Return the position of the first entity of HTML in a text that is not about markup, or None."""
    if "&" not in text or not _ENTITY.search(text) or _MARKUP.search(text):
        return None
    # The semicolon of an entity is not the end of a line of code.
    if is_code(_ENTITY.sub("", text)):
        return None
    entities = _ENTITY.finditer(blank_out_code(text))
    return next((found.start() for found in entities if _is_entity(found.group())), None)


def decode_entities(text: str) -> str:
    """Return the text with its entities as characters, also those that were encoded twice."""
    for _ in range(2):
        if "&" not in text:
            break
        text = _ENTITY.sub(lambda found: html.unescape(found.group()), text)
    return text


def repair_encoding(text: str) -> str:
    """Return the text with the characters that `find_mojibake` recognizes decoded again, except lost ones."""
    if find_mojibake(text) is None:
        return text
    text = _UTF8_AS_LATIN.sub(
        lambda found: _encode(found.group()).decode() if _is_utf8(found.group()) else found.group(), text
    )
    for pattern in (_CP949_RUN, _CP949_MARK):
        text = pattern.sub(lambda found: _decode_cp949(found.group()), text)
    return text


def _is_utf8(sequence: str) -> bool:
    tail = [character for character in sequence if character in _CONTINUATION]
    if sequence[0] != "Â" and _PUNCTUATION.issuperset(tail):
        return False
    try:
        _encode(sequence).decode()
    except UnicodeDecodeError:
        return False
    return True


def _encode(sequence: str) -> bytes:
    return bytes(_CONTINUATION.get(character, ord(character) & 0xFF) for character in sequence)


def _decode_cp949(run: str) -> str:
    if len(run) > 2 and not _is_korean(run):
        return run
    paired = len(run) // 2 * 2
    return run[:paired].encode("latin-1").decode("cp949", "replace") + run[paired:]


def _is_korean(run: str) -> bool:
    """Return whether a run of Latin-1 characters, symbols and letters, is Hangul in CP949."""
    run = run[: len(run) // 2 * 2]
    if not min(run) < "À" <= max(run):
        return False
    decoded = run.encode("latin-1").decode("cp949", "replace")
    return all("가" <= character <= "힣" for character in decoded)


def _is_entity(entity: str) -> bool:
    return entity[1] == "#" or entity[1:] in html5
