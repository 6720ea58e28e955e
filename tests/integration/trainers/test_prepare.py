"""Rendered rows: which tokens carry loss, and token texts that join to the whole text."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import ROOT
from trainers.configs.stages.prepare import PrepareConfig
from trainers.modeling.load import load_tokenizer, template_sha256
from trainers.prepare import plan
from trainers.prepare import run as prepare
from trainers.runtime.events import EventWriter

ROWS: list[dict[str, Any]] = [
    {"question": "How many keys?", "answer": "So 2 + 3 = 5.\n#### 5"},
    {
        "messages": [
            {"role": "user", "content": "안녕하세요 🙂"},
            {"role": "assistant", "content": "반갑습니다"},
            {"role": "user", "content": "How many?"},
            {"role": "assistant", "content": "#### 7"},
        ]
    },
    {"prompt": "long " * 60, "completion": "#### 1"},
]


def prepare_rows(starter: Path, dataset: str, tmp_path: Path, rows: int = 5) -> dict[str, Any]:
    config = PrepareConfig(base=str(starter), dataset=dataset, rows=rows, max_length=120)
    return prepare(config, tmp_path, EventWriter(None))


def loss_text(entry: dict[str, Any]) -> str:
    return "".join(token["text"] for token in entry["tokens"] if token["loss"])


def test_only_the_answer_and_its_end_carry_loss(
    starter: Path, write_rows: Callable[[list[dict[str, Any]]], str], tmp_path: Path
) -> None:
    first, turn_1, turn_2, _ = prepare_rows(starter, write_rows(ROWS), tmp_path)["rows"]
    assert loss_text(first) == "So 2 + 3 = 5.\n#### 5<|im_end|>\n"
    assert (turn_1["row"], turn_1["turn"], turn_2["row"], turn_2["turn"]) == (2, 1, 2, 2)
    assert loss_text(turn_1) == "반갑습니다<|im_end|>\n"
    assert loss_text(turn_2) == "#### 7<|im_end|>\n"


def test_token_texts_join_to_the_text_in_any_script(
    starter: Path, write_rows: Callable[[list[dict[str, Any]]], str], tmp_path: Path
) -> None:
    for entry in prepare_rows(starter, write_rows(ROWS), tmp_path)["rows"][:3]:
        assert "".join(token["text"] for token in entry["tokens"]) == entry["text"]
        assert entry["token_count"] == len(entry["tokens"])
        assert entry["loss_token_count"] == sum(token["loss"] for token in entry["tokens"])
        assert not entry["truncated"]


def test_truncated_row_says_so(
    starter: Path, write_rows: Callable[[list[dict[str, Any]]], str], tmp_path: Path
) -> None:
    *_, last = prepare_rows(starter, write_rows(ROWS), tmp_path)["rows"]
    assert (last["truncated"], last["token_count"], last["loss_token_count"]) == (True, 120, 0)


def test_only_the_first_rows_are_read(
    starter: Path, write_rows: Callable[[list[dict[str, Any]]], str], tmp_path: Path
) -> None:
    dataset = write_rows([*ROWS[:1], {"broken": True}])
    result = prepare_rows(starter, dataset, tmp_path, rows=1)
    assert len(result["rows"]) == 1
    assert result["template_sha256"] == template_sha256(load_tokenizer(str(starter)))
    assert plan(PrepareConfig(base=str(starter), dataset=dataset, rows=1))["rows"] == 1


def test_rows_alone_are_prepared_without_torch() -> None:
    names = "torch", "transformers", "datasets", "datasketch"
    program = f"import sys, trainers.prepare; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout == b"[]\n"
