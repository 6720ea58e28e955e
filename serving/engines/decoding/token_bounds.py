"""Cheap bounds of the number of tokens of a text, by which a prompt that cannot fit is refused early.

Tokenizing costs about a second and 200 MiB for each megabyte. A prompt that fits is never refused: the first
bound is exact, and the second leaves room for what cutting a text changes.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serving.engines.decoding.text import BYTE_OF_CHARACTER

# The largest factor by which a normalizer shortens a text, in bytes of UTF-8, rounded up. All replace the
# sign for Kelvin (3 bytes) by K (1 byte). NFC also composes: a Greek letter with two accents shrinks from 7
# bytes to 2. NFKC and NFKD replace mathematical letters of 4 bytes by those of 1. Others, such as those that
# strip accents or spaces, have no such factor.
SHRINKING = {"NFC": 4, "NFD": 3, "NFKC": 4, "NFKD": 4, "Prepend": 1, "ByteLevel": 1}
# Pre-tokenizers that keep every character of the text; the others drop spaces.
LOSSLESS_PRE_TOKENIZERS = {"ByteLevel", "Metaspace", "Digits"}
# A text of up to so many characters per token of the window is tokenized whole: most that fit are shorter.
TYPICAL_CHARACTERS_PER_TOKEN = 6
PIECE_CHARACTERS = 2**16
# A cut changes the tokens of the word that it splits, or of a special token, and of nothing else.
TOKENS_PER_CUT = 64


@dataclass(frozen=True)
class TokenCoverage:
    """The most text that one token stands for."""

    max_bytes: int
    ignores_spaces: bool
    """Whether a special token also stands for all spaces next to it."""

    def min_tokens(self, text: str) -> int:
        """Return a number of tokens that the text has at least."""
        size = len(text.encode("utf-8", "surrogatepass"))
        if self.ignores_spaces:
            size = len("".join(text.split()).encode("utf-8", "surrogatepass"))
        return -(-size // self.max_bytes)


def find_token_coverage(tokenizer: Any) -> TokenCoverage | None:
    """Return the coverage of the tokens of a `tokenizers.Tokenizer`.

    Return None if one token can stand for any amount of text: an unknown word, or what a normalizer drops.
    """
    pipeline = json.loads(tokenizer.to_str())
    shrinking = _shrinking(pipeline["normalizer"])
    vocabulary = tokenizer.get_vocab()
    if shrinking is None or not _keeps_text(pipeline) or not _covers_all_bytes(pipeline, vocabulary):
        return None
    longest = max(len(token.encode("utf-8", "surrogatepass")) for token in vocabulary)
    ignores_spaces = any(token["lstrip"] or token["rstrip"] for token in pipeline["added_tokens"])
    return TokenCoverage(longest * shrinking, ignores_spaces)


def exceeds_tokens(tokenizer: Any, text: str, max_tokens: int, is_cancelled: Callable[[], bool]) -> bool:
    """Return whether a long text certainly has more tokens, by tokenizing pieces of it until they suffice.

    A text that most likely fits is not counted. Counting ends early once `is_cancelled` returns True.
    """
    if len(text) <= max(PIECE_CHARACTERS, TYPICAL_CHARACTERS_PER_TOKEN * max_tokens):
        return False
    count = 0
    for start in range(0, len(text), PIECE_CHARACTERS):
        if is_cancelled():
            return True
        piece = text[start : start + PIECE_CHARACTERS]
        count += len(tokenizer(piece, add_special_tokens=False)["input_ids"]) - TOKENS_PER_CUT
        if count > max_tokens:
            return True
    return False


def _shrinking(normalizer: dict[str, Any] | None) -> int | None:
    """Return the largest factor by which a normalizer shortens a text, or None if there is none."""
    if normalizer is None:
        return 1
    if normalizer["type"] == "Sequence":
        product = 1
        for part in normalizer["normalizers"]:
            factor = _shrinking(part)
            if factor is None:
                return None
            product *= factor
        return product
    if normalizer["type"] == "Replace":
        replaced = normalizer["pattern"].get("String")
        keeps = replaced is not None and len(normalizer["content"].encode()) >= len(replaced.encode())
        return 1 if keeps else None
    return SHRINKING.get(normalizer["type"])


def _keeps_text(pipeline: dict[str, Any]) -> bool:
    """Return whether every character reaches the model."""
    pre_tokenizer = pipeline["pre_tokenizer"]
    parts = [] if pre_tokenizer is None else pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    return all(
        part["type"] in LOSSLESS_PRE_TOKENIZERS
        or (part["type"] in ("Split", "Punctuation") and part["behavior"] != "Removed")
        for part in parts
    )


def _covers_all_bytes(pipeline: dict[str, Any], vocabulary: dict[str, int]) -> bool:
    """Return whether the model has a token for every byte; else one unknown token may replace any text."""
    if pipeline["model"]["type"] != "BPE":
        return False
    if pipeline["model"].get("byte_fallback"):
        return all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    parts = json.dumps([pipeline["pre_tokenizer"], pipeline["normalizer"]])
    return '"ByteLevel"' in parts and all(character in vocabulary for character in BYTE_OF_CHARACTER)
