"""Goal: rows are read as they are meant, or refused with their line."""

import json
from pathlib import Path
from typing import Any

import pytest

from trainers.rendering.render import read_prompt_completions
from trainers.runtime.errors import DatasetInvalid


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_completion_that_is_labelled_bad_is_not_read_as_a_good_one(tmp_path: Path) -> None:
    row = {"prompt": "2+2?", "completion": "4"}
    dataset = write_rows(tmp_path, [row, row | {"label": True}, row | {"label": False}])
    with pytest.raises(DatasetInvalid, match=r"Row 3 .*`label: false`") as refused:
        list(read_prompt_completions(dataset))
    assert "`kto`" in str(refused.value.hint)
