"""The rows of the worked cases: generated where there are none, and never in place of a user's."""

from pathlib import Path

import pytest

from app.demos.worked_case import write_sources


@pytest.mark.parametrize("case", ["translation", "maths"])
def test_missing_files_are_generated_once(case: str, tmp_path: Path) -> None:
    first = write_sources([tmp_path], case)
    assert all(first.values()) and all(path.read_text(encoding="utf-8") for path in first)
    assert write_sources([tmp_path], case) == dict.fromkeys(first, False)


def test_files_of_any_root_are_used_as_they_are(tmp_path: Path) -> None:
    existing = tmp_path / "rows" / "gsm8k" / "test.jsonl"
    existing.parent.mkdir(parents=True)
    existing.write_text("mine", encoding="utf-8")
    sources = write_sources([tmp_path / "empty", tmp_path / "rows"], "maths")
    assert sources[existing] is False
    assert sources[tmp_path / "empty" / "gsm8k" / "train.jsonl"] is True
    assert existing.read_text(encoding="utf-8") == "mine"
