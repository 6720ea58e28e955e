"""Characters are never split."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from serving.engines.decoding.text import Detokenizer, token_bytes

SENTENCE = "한국어 문장과 emoji 🙂 그리고 漢字, café."


class BareTokenizer:
    """A tokenizer file with the two methods of transformers' tokenizers that are used."""

    def __init__(self, file: Path) -> None:
        self.raw = Tokenizer.from_file(str(file))

    def decode(self, ids: list[int], skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        return str(self.raw.decode(ids, skip_special_tokens=skip_special_tokens))

    def convert_ids_to_tokens(self, token: int) -> str | None:
        return self.raw.id_to_token(token)


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    return BareTokenizer(tiny / "base" / "tokenizer.json")


def test_text_has_whole_characters_and_nothing_is_lost(tokenizer: Any) -> None:
    detokenizer = Detokenizer(tokenizer, [])
    pieces = [detokenizer.push(token) for token in tokenizer.raw.encode(SENTENCE).ids]
    assert "".join(pieces) + detokenizer.flush() == SENTENCE
    assert "�" not in "".join(pieces)


def test_a_special_token_between_two_words_has_no_text_and_withholds_none(tokenizer: Any) -> None:
    ids = tokenizer.raw.encode("한").ids
    detokenizer = Detokenizer(tokenizer, [])
    assert "".join(detokenizer.push(token) for token in [*ids, 1, *ids]) == "한한"


def test_bytes_that_never_become_a_character_do_not_withhold_the_text(tokenizer: Any) -> None:
    lead_byte = tokenizer.raw.encode("한").ids[0]
    detokenizer = Detokenizer(tokenizer, [])
    emitted = "".join(detokenizer.push(token) for token in [lead_byte] * 40)
    assert len(emitted) >= 32


@pytest.mark.parametrize("broken", range(12))
def test_a_character_after_broken_bytes_is_not_broken_with_them(tokenizer: Any, broken: int) -> None:
    character = tokenizer.raw.encode("한").ids
    ids = [character[0]] * broken + character + character[1:] * broken + character
    detokenizer = Detokenizer(tokenizer, [])
    emitted = "".join(detokenizer.push(token) for token in ids) + detokenizer.flush()
    assert emitted == tokenizer.raw.decode(ids)


def test_an_incomplete_character_is_emitted_at_the_end(tokenizer: Any) -> None:
    detokenizer = Detokenizer(tokenizer, [])
    assert detokenizer.push(tokenizer.raw.encode("한").ids[0]) == ""
    assert detokenizer.flush() == "�"


def test_token_bytes_join_to_the_text(tokenizer: Any) -> None:
    ids = tokenizer.raw.encode(SENTENCE).ids
    assert bytes(byte for token in ids for byte in token_bytes(tokenizer, token)).decode() == SENTENCE
