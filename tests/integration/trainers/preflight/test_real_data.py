"""Goal: preflight accepts real data and its stand-in, and finds a leak of test rows in it."""

import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from tests.integration.trainers.preflight.test_findings import run_preflight
from tests.shared_data import SharedData
from trainers.configs.recipes import TranslationRecipe
from trainers.data.files.aligned import read_aligned
from trainers.data.files.jsonl import iter_rows
from trainers.data.filters.drops import DropRecorder
from trainers.data.filters.pair_cleaning import TranslationReport
from trainers.data.recipes.filtered_translation import filtered_translation_rows

Write = Callable[[list[dict[str, Any]]], str]


def test_nothing_is_found_in_gsm8k(
    starter: Path, tmp_path: Path, write_rows: Write, shared_data: SharedData
) -> None:
    rows = [row for _, row in islice(iter_rows(shared_data.gsm8k / "train.jsonl"), 2000)]
    result = run_preflight(
        spacious(starter, tmp_path), tmp_path, write_rows(rows), **held_out(shared_data), max_length=4096
    )
    assert result["findings"] == []


def test_a_test_row_of_gsm8k_among_training_rows_is_found(
    starter: Path, tmp_path: Path, write_rows: Write, shared_data: SharedData
) -> None:
    rows = [row for _, row in islice(iter_rows(shared_data.gsm8k / "train.jsonl"), 200)]
    leaked = next(row for _, row in islice(iter_rows(shared_data.gsm8k / "test.jsonl"), 30, None))
    base, dataset = spacious(starter, tmp_path), write_rows([*rows, leaked])
    (found,) = run_preflight(base, tmp_path, dataset, **held_out(shared_data), max_length=4096)["findings"]
    assert (found["code"], found["count"]) == ("test_rows_in_training", 1)
    assert found["examples"] == [{"line": len(rows) + 1, "text": "row 31 of the held-out data"}]


def test_nothing_is_found_in_translations_in_both_directions(
    starter: Path, tmp_path: Path, write_rows: Write, shared_data: SharedData
) -> None:
    parts = []
    for name in ("train", "test"):
        pairs = read_aligned(shared_data.news / f"{name}.ko", shared_data.news / f"{name}.en")
        rows = filtered_translation_rows(
            TranslationRecipe(), islice(pairs, 400), DropRecorder(), TranslationReport()
        )
        parts.append(write_rows([row for _, row in rows]))
    base = spacious(starter, tmp_path)
    result = run_preflight(base, tmp_path, parts[0], held_out=[parts[1]], max_length=4096)
    assert result["findings"] == []


def held_out(shared_data: SharedData) -> dict[str, Any]:
    return {"held_out": [str(shared_data.gsm8k / "test.jsonl")]}


def spacious(starter: Path, folder: Path) -> Path:
    """Return the starter with more positions, because it reads each byte of a real text as a token."""
    base = folder / "base"
    shutil.copytree(starter, base)
    described = json.loads((base / "config.json").read_text()) | {"max_position_embeddings": 4096}
    (base / "config.json").write_text(json.dumps(described))
    return base
