"""Incremental detokenization: whole characters only, and nothing of a stop string."""

import codecs
import re
from typing import Any
from weakref import WeakKeyDictionary

REPLACEMENT = "�"
# A character has at most four bytes, and so four byte tokens. A longer tail is not an incomplete character
# but bytes that will never become one.
MAX_PENDING_TOKENS = 8
MAX_INCOMPLETE_TOKENS = 3
# SentencePiece tokenizers write the space before a word only if another token precedes it.
CONTEXT_TOKENS = 6


class Detokenizer:
    """Converts tokens to text one by one; a character is withheld until its last byte has arrived."""

    def __init__(self, tokenizer: Any, prompt_ids: list[int], skip_special_tokens: bool = True) -> None:
        self.tokenizer = tokenizer
        self.skip_special_tokens = skip_special_tokens
        self.window = prompt_ids[-CONTEXT_TOKENS:]
        self.emitted = len(self.window)

    def push(self, token: int) -> str:
        """Return the text that this token completes, which is often empty."""
        self.window.append(token)
        text = self._pending_text()
        if text.endswith(REPLACEMENT):
            pending = len(self.window) - self.emitted
            return "" if pending < MAX_PENDING_TOKENS else self._emit_broken_bytes()
        if text:
            self._advance()
        else:
            # A token without text, such as a special token, gives no context to the tokens after it.
            self.window.pop()
        return text

    def flush(self) -> str:
        """Return the withheld text when no token follows."""
        text = self._pending_text()
        self._advance()
        return text

    def _emit_broken_bytes(self) -> str:
        """Return replacement characters, but withhold the beginning of a character that may follow them."""
        end = len(self.window) - count_incomplete_tokens(self.tokenizer, self.window)
        incomplete, self.window = self.window[end:], self.window[:end]
        text = self.flush()
        self.window += incomplete
        return text

    def _pending_text(self) -> str:
        emitted = self._decode(self.window[: self.emitted])
        return self._decode(self.window)[len(emitted) :]

    def _decode(self, tokens: list[int]) -> str:
        return decode(self.tokenizer, tokens, self.skip_special_tokens)

    def _advance(self) -> None:
        self.window = self.window[self.emitted :] or self.window
        self.emitted = len(self.window)


class StopMatcher:
    """Cuts text at the first stop string, and withholds text that may be the beginning of one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.stops = stops
        self.withheld = ""
        self.matched = False

    def push(self, text: str) -> str:
        """Return the text that can be emitted; set `matched` when a stop string is complete."""
        text = self.withheld + text
        found = [at for at in (text.find(stop) for stop in self.stops) if at >= 0]
        if found:
            self.matched, self.withheld = True, ""
            return text[: min(found)]
        keep = max((overlap(text, stop) for stop in self.stops), default=0)
        self.withheld = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Return the withheld text when no text follows."""
        text, self.withheld = self.withheld, ""
        return text


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)


def decode(tokenizer: Any, tokens: list[int], skip_special_tokens: bool = True) -> str:
    """Decode tokens without cleaning up spaces, and by default without special tokens."""
    return str(
        tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
    )


def token_text(tokenizer: Any, token: int) -> str:
    """Decode one token, special or not; an incomplete character becomes U+FFFD."""
    return _look_up(tokenizer, token)[0]


def token_bytes(tokenizer: Any, token: int) -> list[int]:
    """Return the bytes of one token, also if they are an incomplete character."""
    return list(_look_up(tokenizer, token)[1])


def _look_up(tokenizer: Any, token: int) -> tuple[str, bytes]:
    """Return the text and the bytes of a token; each is decoded once, as scores name thousands."""
    known = _TOKENS.setdefault(tokenizer, {})
    if token not in known:
        text = decode(tokenizer, [token], skip_special_tokens=False)
        known[token] = text, _encode_token(tokenizer, token, text)
    return known[token]


def _encode_token(tokenizer: Any, token: int, text: str) -> bytes:
    piece = str(tokenizer.convert_ids_to_tokens(token))
    if REPLACEMENT not in text:
        return text.encode()
    if byte_token := re.fullmatch(r"<0x([0-9A-F]{2})>", piece):
        return bytes([int(byte_token.group(1), 16)])
    if all(character in BYTE_OF_CHARACTER for character in piece):
        return bytes(BYTE_OF_CHARACTER[character] for character in piece)
    return text.encode()


def count_incomplete_tokens(tokenizer: Any, tokens: list[int]) -> int:
    """Return the number of trailing tokens that form an incomplete but valid character, or 0."""
    raw = b""
    for count, token in enumerate(reversed(tokens[-MAX_INCOMPLETE_TOKENS:]), start=1):
        raw = bytes(token_bytes(tokenizer, token)) + raw
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(raw)
        if decoder.getstate()[0]:
            return count
    return 0


def byte_alphabet() -> dict[str, int]:
    """Return the alphabet of byte-level BPE: printable Latin-1 bytes are themselves, others U+0100 and up.

    It is `bytes_to_unicode` of GPT-2's encoder, inverted.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + offset): byte for offset, byte in enumerate(others)}


BYTE_OF_CHARACTER = byte_alphabet()
# Text and bytes of tokens, by tokenizer: that of an adapter goes with it.
_TOKENS: WeakKeyDictionary[Any, dict[int, tuple[str, bytes]]] = WeakKeyDictionary()
