"""From tokens to the text that may be shown: whole characters, and nothing of a stop string."""

import codecs
import re
from typing import Any

REPLACEMENT = "�"
# No character needs more than four byte tokens, so a longer tail is not an unfinished character but bytes
# that will never become one.
MOST_PENDING_TOKENS = 8
MOST_UNFINISHED_TOKENS = 3
# Tokenizers of the SentencePiece kind write a space before a word only when something stands before it.
CONTEXT_TOKENS = 6


class Detokenizer:
    """Turns tokens into text as they come and holds back a character until its last byte is there."""

    def __init__(self, tokenizer: Any, prompt_ids: list[int], skip_special_tokens: bool = True) -> None:
        self.tokenizer = tokenizer
        self.skip_special_tokens = skip_special_tokens
        self.window = prompt_ids[-CONTEXT_TOKENS:]
        self.shown = len(self.window)

    def push(self, token: int) -> str:
        """The text that this token completes, often empty."""
        self.window.append(token)
        text = self._unshown()
        if text.endswith(REPLACEMENT):
            pending = len(self.window) - self.shown
            return "" if pending < MOST_PENDING_TOKENS else self._give_up()
        if text:
            self._advance()
        else:
            # A token without text, such as a special one, says nothing about the tokens after it.
            self.window.pop()
        return text

    def _give_up(self) -> str:
        """Show broken bytes as such, but not the beginning of a character that may follow them."""
        begun = unfinished(self.tokenizer, self.window)
        kept, self.window = self.window[len(self.window) - begun :], self.window[: len(self.window) - begun]
        text = self.flush()
        self.window += kept
        return text

    def flush(self) -> str:
        """What was held back, when no token will come any more."""
        text = self._unshown()
        self._advance()
        return text

    def _unshown(self) -> str:
        before = self._decode(self.window[: self.shown])
        return self._decode(self.window)[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return decode(self.tokenizer, tokens, self.skip_special_tokens)

    def _advance(self) -> None:
        self.window = self.window[self.shown :] or self.window
        self.shown = len(self.window)


class StopMatcher:
    """Cuts text at the first stop string and holds back what may be the beginning of one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.stops = stops
        self.held = ""
        self.hit = False

    def push(self, text: str) -> str:
        """The text that may be shown; sets `hit` once a stop string is complete."""
        text = self.held + text
        found = [at for at in (text.find(stop) for stop in self.stops) if at >= 0]
        if found:
            self.hit, self.held = True, ""
            return text[: min(found)]
        keep = max((overlap(text, stop) for stop in self.stops), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, when no text will come any more."""
        text, self.held = self.held, ""
        return text


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins, without being complete."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)


def decode(tokenizer: Any, tokens: list[int], skip_special_tokens: bool = True) -> str:
    """Text of tokens, by default without the special ones, and without prettified spaces."""
    return str(
        tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
    )


def token_text(tokenizer: Any, token: int) -> str:
    """Text of one token, special ones included; a piece of a character gives U+FFFD."""
    return str(tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))


def token_bytes(tokenizer: Any, token: int) -> list[int]:
    """The bytes that one token stands for, also where it is only a piece of a character."""
    text = token_text(tokenizer, token)
    piece = str(tokenizer.convert_ids_to_tokens(token))
    if REPLACEMENT not in text:
        return list(text.encode())
    if fallback := re.fullmatch(r"<0x([0-9A-F]{2})>", piece):
        return [int(fallback.group(1), 16)]
    if all(character in BYTE_OF_CHARACTER for character in piece):
        return [BYTE_OF_CHARACTER[character] for character in piece]
    return list(text.encode())


def unfinished(tokenizer: Any, tokens: list[int]) -> int:
    """How many of the last tokens hold a character that lacks bytes; 0 if it cannot become one."""
    raw = b""
    for count, token in enumerate(reversed(tokens[-MOST_UNFINISHED_TOKENS:]), start=1):
        raw = bytes(token_bytes(tokenizer, token)) + raw
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(raw)
        if decoder.getstate()[0]:
            return count
    return 0


def byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's alphabet: printable Latin-1 bytes are themselves, the rest follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + offset): byte for offset, byte in enumerate(others)}


BYTE_OF_CHARACTER = byte_alphabet()
