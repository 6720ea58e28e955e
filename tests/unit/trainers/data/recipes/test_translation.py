import random
from pathlib import Path
from typing import Any

import pytest

from tests.shared_data import SharedData
from trainers.configs import DatasetPart
from trainers.configs.recipes import TranslationRecipe
from trainers.data.checks import validate_row
from trainers.data.files.aligned import TranslationPair, parse_pairs, read_aligned, read_tsv
from trainers.data.files.jsonl import save_rows
from trainers.data.files.tmx import read_tmx
from trainers.data.filters.drops import DropRecorder
from trainers.data.filters.pair_cleaning import TranslationReport
from trainers.data.filters.row_filters import drop_duplicates
from trainers.data.formats import RowFormat
from trainers.data.recipes.filtered_translation import filtered_translation_rows
from trainers.data.recipes.translation import WORDINGS, Direction, translation_rows
from trainers.data.splits import split_file
from trainers.data.validate import validate_file

PAIRS = [TranslationPair(n, f"안녕 {n}", f"Hello {n}") for n in range(1, 41)]


def file(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_lines_of_two_files_stand_side_by_side(tmp_path: Path) -> None:
    korean = file(tmp_path, "ko", "\ufeff하나\r\n둘\u2028셋\n")
    english = file(tmp_path, "en", "one\ntwo\x0bthree\n")
    assert list(read_aligned(korean, english)) == [(1, "하나", "one"), (2, "둘\u2028셋", "two\x0bthree")]


def test_files_of_different_length_are_not_aligned(tmp_path: Path) -> None:
    korean, english = file(tmp_path, "a.ko", "하나\n"), file(tmp_path, "a.en", "one\ntwo\n")
    with pytest.raises(ValueError, match=r"a\.ko ends before line 2 of a\.en"):
        list(read_aligned(korean, english))


def test_the_error_of_a_line_that_is_not_utf8_names_it(tmp_path: Path) -> None:
    korean, english = file(tmp_path, "a.ko", "하나\n둘\n".encode("cp949")), file(tmp_path, "a.en", "1\n2\n")
    with pytest.raises(ValueError, match=r"a\.ko, line 1: byte 1 is not UTF-8"):
        list(read_aligned(korean, english))


def test_columns_of_tsv_are_taken_by_number_or_by_name(tmp_path: Path) -> None:
    path = file(tmp_path, "a.tsv", 'id\tEnglish\tKorean\n7\t"one\t하나\n')
    assert list(read_tsv(path, korean="Korean", english="English")) == [(2, "하나", '"one')]
    assert list(read_tsv(path, korean=3, english=2))[1] == (2, "하나", '"one')


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"korean": 3}, "line 1: column 3 is missing"),
        ({"korean": "Korean"}, "no column 'Korean'"),
        ({"english": 0}, "numbered from 1"),
    ],
)
def test_the_error_of_a_missing_column_names_it(
    tmp_path: Path, columns: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        list(read_tsv(file(tmp_path, "a.tsv", "하나\tone\n"), **columns))


def test_rows_of_a_hub_data_set_give_pairs_in_both_layouts() -> None:
    assert list(parse_pairs([{"translation": {"ko": "하나", "en": "one"}}, {"ko": "둘", "en": "two"}])) == [
        (1, "하나", "one"),
        (2, "둘", "two"),
    ]
    with pytest.raises(ValueError, match="Row 2 has no text in `english`"):
        list(
            parse_pairs(
                [{"korean": "둘", "english": "two"}, {"korean": "둘"}], korean="korean", english="english"
            )
        )


TMX = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4"><header srclang="ko"/><body>
<tu><tuv xml:lang="ko-KR"><seg>밥 &amp; <bpt i="1">&lt;b&gt;</bpt>국<ept i="1">&lt;/b&gt;</ept></seg></tuv>
 <tuv xml:lang="EN_us"><seg>Rice and
   <hi>soup</hi></seg></tuv></tu>
<tu><tuv xml:lang="ko"><seg>둘</seg></tuv><tuv xml:lang="fr"><seg>deux</seg></tuv></tu>
<tu><tuv lang="en"><seg>three</seg></tuv> <tuv lang="ko"><seg>셋</seg></tuv>
 <tuv lang="ko"><seg>삼</seg></tuv></tu>
</body></tmx>
"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_units_of_tmx_give_pairs_without_formatting_codes(tmp_path: Path, encoding: str) -> None:
    drops = DropRecorder()
    content = TMX.replace("UTF-8", encoding.upper()).encode(encoding)
    assert list(read_tmx(file(tmp_path, "a.tmx", content), drops)) == [
        (4, "밥 & 국", "Rice and soup"),
        (8, "셋", "three"),
        (8, "삼", "three"),
    ]
    (drop,) = drops.report().first
    assert (drop.line, drop.detail) == (7, "The unit needs the languages ko and en, but has fr, ko.")


BOMB = '<!ENTITY a "xxxxxxxxxx"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">'
UNIT = "<body><tu><tuv xml:lang='ko'><seg>{}</seg></tuv></tu></body>"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (f"<!DOCTYPE tmx [{BOMB}]><tmx>{UNIT.format('&b;')}</tmx>", "entity `a`"),
        (
            f'<!DOCTYPE tmx [<!ENTITY x SYSTEM "file:///etc/passwd">]><tmx>{UNIT.format("&x;")}</tmx>',
            "entity `x`",
        ),
        (f'<!DOCTYPE tmx SYSTEM "tmx14.dtd"><tmx>{UNIT.format("&nbsp;")}</tmx>', "entity `nbsp`"),
        (f"<tmx>{UNIT.format('&nbsp;')}</tmx>", "not well-formed"),
        (f"<tmx>{UNIT.format('x' * 300_000)}</tmx>", "longer than"),
        (f"<tmx a='{'x' * 2**23}'/>", "tag of more than"),
        ("<tmx>" + "<a>" * 99, "nested more than"),
        ("<html/>", "is not TMX"),
        ("<tmx><body>", "not well-formed"),
        ("", "not well-formed"),
    ],
    ids=range(10),
)
def test_invalid_or_hostile_tmx_is_rejected(tmp_path: Path, content: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        list(read_tmx(file(tmp_path, "a.tmx", content), DropRecorder()))


def test_each_pair_gives_a_valid_row_for_each_direction() -> None:
    first, second = list(translation_rows(PAIRS[:1], wordings=1))
    assert first == {
        "messages": [
            {"role": "user", "content": "Translate this Korean text into English.\n\n안녕 1"},
            {"role": "assistant", "content": "Hello 1"},
        ],
        "direction": "ko_en",
        "line": 1,
        "pair": second["pair"],
    }
    assert (second["direction"], second["messages"][1]["content"]) == ("en_ko", "안녕 1")
    assert validate_row(first, RowFormat.messages) == []


def test_the_wording_of_a_row_depends_on_the_seed_and_not_on_its_position() -> None:
    asked = {row["line"]: row for row in translation_rows(PAIRS, directions=[Direction.ko_en])}
    moved = random.Random(1).sample(PAIRS, 20)
    assert all(asked[row["line"]] == row for row in translation_rows(moved, directions=[Direction.ko_en]))
    assert list(translation_rows(PAIRS, seed=1)) != list(translation_rows(PAIRS, seed=2))


def test_all_wordings_are_used_and_each_contains_the_sentence_once() -> None:
    pairs = [TranslationPair(n, f"안녕{n}번", f"hello{n}") for n in range(300)]
    begins = {row["messages"][0]["content"][:12] for row in translation_rows(pairs)}
    assert len(begins) >= 10
    assert all(wording.count("{text}") == 1 for wordings in WORDINGS.values() for wording in wordings)


def test_braces_in_a_sentence_stay_as_they_are() -> None:
    (row,) = translation_rows(
        [TranslationPair(1, "{0} {text}", "{x}")], directions=[Direction.ko_en], wordings=1
    )
    assert row["messages"][0]["content"].endswith("\n\n{0} {text}")


@pytest.mark.parametrize("wordings", [0, 7])
def test_an_invalid_number_of_wordings_is_rejected(wordings: int) -> None:
    with pytest.raises(ValueError, match="set it to 1 to 6"):
        list(translation_rows(PAIRS, wordings=wordings))


def test_news_become_clean_rows_and_dropped_pairs_have_reasons(
    tmp_path: Path, shared_data: SharedData
) -> None:
    drops = DropRecorder()
    pairs = read_aligned(shared_data.news / "train.ko", shared_data.news / "train.en")
    rows = filtered_translation_rows(TranslationRecipe(), pairs, drops, TranslationReport())
    kept = drop_duplicates(rows, drops, RowFormat.messages)
    save_rows(tmp_path / "rows.jsonl", (row for _, row in kept))
    report = validate_file(tmp_path / "rows.jsonl")
    assert (report.fault_count, report.warning_count, report.format) == (0, 0, RowFormat.messages)
    assert report.valid_row_count >= shared_data.min_row_count
    reasons = {drop.line: drop.reason for drop in drops.report().first}
    assert len(reasons) == drops.report().dropped >= shared_data.min_drop_count
    parts = split_file(tmp_path / "rows.jsonl", tmp_path / "parts", test=shared_data.test_split, seed=3)
    assert parts.rows[DatasetPart.test] == shared_data.test_split
