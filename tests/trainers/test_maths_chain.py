"""SFT, DPO and GRPO one after another on the whole starter, judged on held-out problems after each."""

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import ROOT
from tests.trainers.conftest import Programs
from trainers import run_dir as files
from trainers.data.arithmetic import Split, problems
from trainers.metrics.maths import exact_match

Write = Callable[[list[dict[str, Any]]], str]
ANSWERS = 8


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_each_stage_of_the_maths_chain_answers_more_held_out_problems(
    programs: Programs, write_rows: Write, tmp_path: Path
) -> None:
    base = tmp_path / "starter"
    command = [sys.executable, "-m", "trainers.starter", "--out", str(base)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    held_out = write_rows([dict(row) for row in problems(240, Split.held_out, seed=0)])
    rows = {"sft": _training_rows(200, 100), "grpo": _training_rows(5000, 300)}
    shared = {
        "tuning": {"method": "full"},
        "micro_batch_size": 32,
        "warmup_ratio": 0,
        "save_every_steps": 1000,
    }

    def stage(kind: str, model: Path, dataset: str, **more: Any) -> Path:
        config = {"stage": kind, "base": str(model), "dataset": dataset} | shared | more
        process = programs.start(f"trainers.{kind}", config, tmp_path / kind)
        _, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
        return tmp_path / kind / "model"

    sft = stage("sft", base, write_rows(rows["sft"]), max_steps=20, batch_size=32, learning_rate=4e-4)
    pairs = write_rows(graded_pairs(sft, _training_rows(300, 200)))
    losses = {"sigmoid": 1, "sft": 1}
    dpo = stage("dpo", sft, pairs, max_steps=30, batch_size=32, learning_rate=2e-4, losses=losses)
    # After 40 steps the sampled reward has hardly risen, and the greedy score not at all.
    grpo = stage(
        "grpo",
        dpo,
        write_rows(rows["grpo"]),
        max_steps=250,
        batch_size=128,
        micro_batch_size=64,
        learning_rate=4e-4,
        max_completion_length=24,
        rewards=[{"kind": "correctness"}],
    )
    models = {"base": base, "sft": sft, "dpo": dpo, "grpo": grpo}
    scores = {name: _score(programs, model, held_out, tmp_path) for name, model in models.items()}
    print(scores)
    assert scores["sft"] > scores["base"]
    assert scores["dpo"] >= scores["sft"] + 0.04
    assert scores["grpo"] >= max(scores["dpo"] + 0.10, 0.50)


def _training_rows(count: int, seed: int) -> list[dict[str, Any]]:
    return [dict(row) for row in problems(count, Split.train, seed)]


def graded_pairs(model: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The model's own answers, right against wrong, at most two pairs a problem."""
    rng = random.Random(0)
    pairs = []
    for row, answers in zip(rows, _sampled(model, rows), strict=True):
        right = [text for text in dict.fromkeys(answers) if exact_match(text, row["answer"])]
        wrong = [text for text in dict.fromkeys(answers) if text not in right]
        rng.shuffle(wrong)
        if right:
            pairs += [
                {"prompt": row["question"], "chosen": rng.choice(right), "rejected": text}
                for text in wrong[:2]
            ]
    return pairs


def _sampled(folder: Path, rows: list[dict[str, Any]]) -> list[list[str]]:
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.manual_seed(0)
    texts: list[str] = []
    for start in range(0, len(rows), 50):
        asked = [[{"role": "user", "content": row["question"]}] for row in rows[start : start + 50]]
        inputs = tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        out_bt = model.generate(
            **inputs, do_sample=True, top_k=0, max_new_tokens=24, num_return_sequences=ANSWERS
        )
        texts += tokenizer.batch_decode(out_bt[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [texts[start : start + ANSWERS] for start in range(0, len(texts), ANSWERS)]


def _score(programs: Programs, model: Path, dataset: str, folder: Path) -> float:
    run_dir = folder / f"score-of-{model.parent.name}-{model.name}"
    config = {"stage": "evaluate", "model": str(model), "dataset": dataset, "max_new_tokens": 32}
    status, _, err = programs.run("trainers.evaluate", config | {"batch_size": 120}, run_dir)
    assert status == 0, err
    result = files.read_result(run_dir)
    assert result is not None
    return float(result["model"]["score"])
