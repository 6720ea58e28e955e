"""The cheap bounds of a prompt's tokens: they refuse a text that cannot fit, and never one that fits."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from serving.engines.decoding.text import BYTE_OF_CHARACTER
from serving.engines.decoding.token_bounds import exceeds_tokens, find_token_coverage

WORDS = ["hello", " world", "    ", "한국", "어", "aaaaaaaa", "\n\n"]
SPECIAL = AddedToken("<|end|>", special=True, rstrip=True)
GREEDY = "ΐ" + "한" + "K" + "𝐚́" + "�"


def byte_level(*, special: bool = False, normalizer: Any = None) -> Tokenizer:
    """Return a byte-level BPE as those of GPT-2, Llama 3 and Qwen."""
    vocabulary = {character: index for index, character in enumerate(BYTE_OF_CHARACTER)}
    merges = []
    for word in WORDS:
        pieces = [character for byte in word.encode() for character in BYTE_OF_CHARACTER_INVERSE[byte]]
        whole = pieces[0]
        for piece in pieces[1:]:
            if whole + piece not in vocabulary:
                vocabulary[whole + piece] = len(vocabulary)
                merges.append((whole, piece))
            whole += piece
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if special:
        tokenizer.add_special_tokens([SPECIAL])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """Return a BPE with byte tokens for unknown characters, as those of Llama 2 and Gemma."""
    names = [f"<0x{byte:02X}>" for byte in range(256)] + ["<unk>", "▁", "a", "aa", "aaaa", "▁▁"]
    vocabulary = {name: index for index, name in enumerate(names)}
    merges = [("a", "a"), ("aa", "aa"), ("▁", "▁")]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return tokenizer


BYTE_OF_CHARACTER_INVERSE = {byte: character for character, byte in BYTE_OF_CHARACTER.items()}
BOUNDED: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "NFC": lambda: byte_level(normalizer=normalizers.NFC()),
    "NFD": lambda: byte_level(normalizer=normalizers.NFD()),
    "NFKD": lambda: byte_level(normalizer=normalizers.NFKD()),
    "spaces after a special token": lambda: byte_level(special=True),
    "byte fallback": byte_fallback,
}
TOKENIZERS = {name: make() for name, make in BOUNDED.items()}
TEXTS = st.lists(st.sampled_from([*WORDS, "<|end|>", GREEDY]) | st.text(max_size=8), max_size=40).map("".join)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(text=TEXTS)
def test_no_text_has_fewer_tokens_than_its_bound(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    coverage = find_token_coverage(tokenizer)
    assert coverage is not None
    assert coverage.min_tokens(text) <= len(tokenizer.encode(text, add_special_tokens=False).ids)


def test_spaces_that_a_special_token_absorbs_are_not_counted() -> None:
    tokenizer, text = TOKENIZERS["spaces after a special token"], "<|end|>" + " " * 10_000
    coverage = find_token_coverage(tokenizer)
    assert coverage is not None
    assert (coverage.min_tokens(text), len(tokenizer.encode(text).ids)) == (1, 1)


def words(behavior: str) -> Tokenizer:
    tokenizer = byte_level()
    split = pre_tokenizers.Split(Regex(r"\s+"), behavior=behavior)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(use_regex=False)])
    return tokenizer


UNBOUNDED: dict[str, Callable[[], Tokenizer]] = {
    "an unknown word is one token": lambda: Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>")),
    "unknown characters are dropped": lambda: Tokenizer(models.BPE({"a": 0}, [])),
    "spaces are stripped": lambda: byte_level(normalizer=normalizers.Strip()),
    "a pattern is removed": lambda: byte_level(normalizer=normalizers.Replace(Regex(r"x+"), "")),
    "spaces between words are removed": lambda: words("removed"),
}


@pytest.mark.parametrize("name", UNBOUNDED)
def test_a_tokenizer_that_drops_text_has_no_bound(name: str) -> None:
    assert find_token_coverage(UNBOUNDED[name]()) is None


def test_a_pattern_that_only_splits_keeps_the_bound() -> None:
    assert find_token_coverage(words("isolated")) == find_token_coverage(byte_level())


class CountingTokenizer:
    """Tokenizes like transformers' tokenizers do, and counts the characters that it was given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.n_characters = 0

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        self.n_characters += len(text)
        return {"input_ids": self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}


def test_counting_a_long_text_stops_once_it_has_too_many_tokens() -> None:
    tokenizer = CountingTokenizer(byte_level())
    assert exceeds_tokens(tokenizer, "xyz " * 1_000_000, 1000, lambda: False)
    assert tokenizer.n_characters == 65_536


@pytest.mark.parametrize("word", ["hello world", "aaaaaaaa", "<|end|>    ", "한국어", "x"])
def test_a_long_text_that_fits_is_never_refused(word: str) -> None:
    tokenizer = byte_level(special=True)
    text = word * (300_000 // len(word))
    n_tokens = len(tokenizer.encode(text, add_special_tokens=False).ids)
    assert not exceeds_tokens(CountingTokenizer(tokenizer), text, n_tokens, lambda: False)


def test_counting_stops_when_the_client_has_left() -> None:
    tokenizer = CountingTokenizer(byte_level())
    exceeds_tokens(tokenizer, "hello world" * 1_000_000, 100_000, lambda: tokenizer.n_characters > 0)
    assert tokenizer.n_characters == 65_536
