"""Goal: the sides of a pair do not depend on the kind of their source, and damage is repaired or dropped."""

import unicodedata
from pathlib import Path

import pytest

from trainers.data.files.aligned import TranslationPair, read_aligned, read_tsv
from trainers.data.files.tmx import read_tmx
from trainers.data.filters.drops import DropRecorder
from trainers.data.filters.pair_cleaning import TranslationReport, clean_pairs

KOREAN = "  그는\u3000집에\u00a0 갔다.\u200b"
ENGLISH = "He  went\u2003home. "
TMX = (
    '<tmx version="1.4"><header/><body><tu><tuv xml:lang="ko"><seg>{korean}</seg></tuv>'
    '<tuv xml:lang="en"><seg>{english}</seg></tuv></tu></body></tmx>'
)


def clean(pair: TranslationPair) -> tuple[list[TranslationPair], DropRecorder, TranslationReport]:
    drops, report = DropRecorder(), TranslationReport()
    return list(clean_pairs([pair], drops, report)), drops, report


@pytest.mark.parametrize("kind", ["aligned", "tsv", "tmx"])
def test_white_space_is_the_same_whatever_the_source(tmp_path: Path, kind: str) -> None:
    for name, content in (
        ("ko", f"{KOREAN}\r\n"),
        ("en", f"{ENGLISH}\r\n"),
        ("tsv", f"{KOREAN}\t{ENGLISH}\r\n"),
        ("tmx", TMX.format(korean=KOREAN, english=ENGLISH)),
    ):
        (tmp_path / name).write_bytes(content.encode())
    drops = DropRecorder()
    pairs = {
        "aligned": lambda: read_aligned(tmp_path / "ko", tmp_path / "en"),
        "tsv": lambda: read_tsv(tmp_path / "tsv"),
        "tmx": lambda: read_tmx(tmp_path / "tmx", drops),
    }[kind]()
    assert list(clean_pairs(pairs, drops, TranslationReport())) == [(1, "그는 집에 갔다.", "He went home.")]


def test_entities_and_wrong_encoding_are_repaired_and_counted() -> None:
    pair = TranslationPair(
        7, unicodedata.normalize("NFD", "태국&#8226;한국"), "Obama¡¯s Tom &amp;amp; cafÃ© trip &#8212; ok"
    )
    kept, drops, report = clean(pair)
    assert kept == [(7, "태국•한국", "Obama’s Tom & café trip — ok")]
    assert (report.entities_decoded, report.encoding_repaired, report.first_cleaned) == (1, 1, [7])
    assert drops.report().dropped == 0


@pytest.mark.parametrize(
    "english", ["raw jalape&ntilde;", "CANC&Uacute; ", "lost \ufffd character", "짓&#44419;"], ids=range(4)
)
def test_a_side_that_cannot_be_repaired_is_dropped(english: str) -> None:
    kept, drops, report = clean(TranslationPair(1, "문장", english))
    assert (kept, drops.report().counts, report.entities_decoded) == ([], {"broken_text": 1}, 0)


@pytest.mark.parametrize("text", ["AT&T;", "👩\u200d👩\u200d👧 ❤\ufe0f", "می\u200cخواهم", "Tom & Jerry"])
def test_sound_text_is_unchanged(text: str) -> None:
    kept, _, report = clean(TranslationPair(1, "문장", text))
    assert kept == [(1, "문장", text)]
    assert report == TranslationReport()
