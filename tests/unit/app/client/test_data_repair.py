import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from app.client.data_check import FileUncheckable, check_file
from app.client.data_repair import Changes, RepairRefused, repair_file

TABLE = '한국어,영어\n안녕,Hello\n물,Water,extra\n,Nothing\n안녕,Hello\n책,"A ""book"""\n'
FIELDS = {"prompt": "Translate: {한국어}", "completion": "{영어}"}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    path.write_bytes(TABLE.encode("cp949"))
    return path


def repair(table: Path, **changes: Any) -> list[str]:
    repaired = repair_file(table, table.with_name("new.jsonl"), Changes(**changes), encoding="cp949")
    return repaired.path.read_text(encoding="utf-8").splitlines()


def test_a_table_becomes_rows_of_a_format_without_its_useless_rows(table: Path) -> None:
    lines = repair(table, fields=FIELDS, remove_rows=[2, 3], remove_duplicates=True)
    assert lines == [
        '{"prompt": "Translate: 안녕", "completion": "Hello"}',
        '{"prompt": "Translate: 책", "completion": "A \\"book\\""}',
    ]
    assert check_file(table.with_name("new.jsonl")).trainable


def test_a_row_that_cannot_be_used_is_never_left_out_silently(table: Path) -> None:
    with pytest.raises(RepairRefused) as refused:
        repair(table, fields=FIELDS)
    assert "2 of 5 rows cannot be used: row 2: The record in line 3 has 3 cells" in refused.value.message
    assert "row 3: Its field '한국어' is empty." in refused.value.message
    with pytest.raises(RepairRefused, match="1 of 5 rows cannot be used: row 2"):
        repair(table, fields=FIELDS, set_fields={2: {"completion": "Water"}}, remove_rows=[3])
    given = {2: {"prompt": "Translate: 물", "completion": "Water"}}
    lines = repair(table, fields=FIELDS, set_fields=given, remove_rows=[3])
    assert len(lines) == 4 and lines[1] == '{"prompt": "Translate: 물", "completion": "Water"}'


def test_the_result_has_the_reason_for_each_row_that_was_left_out(table: Path) -> None:
    changes = Changes(FIELDS, remove_unusable=True, remove_duplicates=True)
    removed = repair_file(table, table.with_name("new.jsonl"), changes, encoding="cp949").removed
    assert list(removed) == [2, 3, 4] and "3 cells" in removed[2]
    assert (removed[3], removed[4]) == ("Its field '한국어' is empty.", "It equals row 1.")


def test_a_change_of_what_does_not_exist_is_refused(table: Path) -> None:
    with pytest.raises(RepairRefused, match="5 rows, and no row 6"):
        repair(table, remove_rows=[2, 6])
    with pytest.raises(RepairRefused, match="'prompt' names 'korean', which no row has"):
        repair(table, fields={"prompt": "{korean}"}, remove_rows=[2])
    with pytest.raises(FileUncheckable, match="The encoding 'cp-949' is unknown"):
        repair_file(table, table.with_name("new.jsonl"), Changes(), encoding="cp-949")
    assert not table.with_name("new.jsonl").exists()


def test_a_repair_overwrites_no_file(table: Path) -> None:
    table.with_name("new.jsonl").write_text("mine")
    with pytest.raises(RepairRefused, match="exists"):
        repair(table, remove_rows=[2])
    with pytest.raises(RepairRefused):
        repair_file(table, table, Changes(), encoding="cp949")
    assert table.read_bytes() == TABLE.encode("cp949")


def test_lines_of_json_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "1", "completion": ""}\n\n{broken\n{"prompt": "2", "completion": "b"}\n')
    changes = Changes(set_fields={1: {"completion": "a"}}, remove_rows=[2, 3])
    repaired = repair_file(path, tmp_path / "new.jsonl", changes)
    assert list(repaired.removed) == [2, 3]
    assert check_file(repaired.path).valid_row_count == 2


def test_a_large_file_is_repaired_in_little_memory(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(f'{{"prompt": "{n}", "completion": "{"a" * 2500}"}}\n' for n in range(4000)))
    tracemalloc.start()
    repaired = repair_file(source, tmp_path / "new.jsonl", Changes(remove_rows=[7], remove_duplicates=True))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert repaired.rows == 3999 and peak < source.stat().st_size / 3


def test_no_value_is_changed_silently(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"q": null, "a": "1"}\n\n{"q": "x", "q": "y", "a": "2"}\n{"q": "\\ud800", "a": "3"}\n')
    with pytest.raises(RepairRefused) as refused:
        repair_file(source, tmp_path / "new.jsonl", Changes({"prompt": "{q}", "completion": "{a}"}))
    assert "3 of 4 rows cannot be used" in refused.value.message
    for part in ("Its field 'q' is empty", "row 3: It has the key 'q' twice", "half of a surrogate pair"):
        assert part in refused.value.message
    with pytest.raises(RepairRefused, match="Row 1 cannot be written as JSON"):
        given = {1: {"q": "\ud800"}}
        repair_file(source, tmp_path / "new.jsonl", Changes(set_fields=given, remove_unusable=True))
    assert not (tmp_path / "new.jsonl").exists()
