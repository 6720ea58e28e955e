"""lm-eval scores a model behind the gateway as it scores the same weights with its own `hf` backend.

`TUNESMITH_LM_EVAL_PYTHON` is the Python of another environment with `lm-eval[api,hf]` than the tests' own.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.serving.conftest import BASE_SAYS, ENVIRONMENT, Server
from tests.integration.serving.make_tiny import ALPHA_TEXT, BETA_TEXT, QUESTIONS

PYTHON = os.environ.get("TUNESMITH_LM_EVAL_PYTHON", sys.executable)
# For sums of up to a hundred log-probabilities in fp32.
TOLERANCE = 1e-3
# A stop string of many tokens, no part of which may be emitted.
STOP = " 일곱 여덟"
BOTH = ("tiny_choice", "tiny_answer")
ANSWER = ("tiny_answer",)
SCORES = ("acc", "acc_norm", "exact_match")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Report:
    """The scores of each task, and the results of each of its rows."""

    scores: dict[str, dict[str, float]]
    samples: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a task that compares the scores of given texts and one that generates."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [*next_number_rows(), *whole_completion_rows()]
    choice = {"doc_to_choice": "choices", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]}
    write_task(folder, "tiny_choice", rows, output_type="multiple_choice", **choice)
    generation = {"until": ["\n", STOP], "max_gen_toks": 80, "do_sample": False, "temperature": 0}
    metrics = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    questions = [*QUESTIONS, "say alpha", "say beta", "hell", "count it", "안녕", "1 2", "하나 둘", "what"]
    generated = [{"question": question, "answer": BASE_SAYS.split(STOP)[0]} for question in questions]
    write_task(
        folder,
        "tiny_answer",
        generated,
        output_type="generate_until",
        generation_kwargs=generation,
        metric_list=metrics,
    )
    return folder


def next_number_rows() -> Iterable[dict[str, Any]]:
    """Yield rows that ask for the next number; choices differ in length, and some share their first bytes."""
    rng, words = random.Random(0), BASE_SAYS.split()
    for _ in range(40):
        at = rng.randrange(2, len(words))
        choices = [words[at], *rng.sample([word for word in words if word != words[at]], 3)]
        rng.shuffle(choices)
        question = " ".join(words[:at])
        yield {"question": question, "choices": choices, "answer": choices.index(words[at])}


def whole_completion_rows() -> Iterable[dict[str, Any]]:
    """Yield rows with whole completions, one of which is the model's own."""
    for question in QUESTIONS:
        yield {"question": question, "choices": [BASE_SAYS, ALPHA_TEXT, BETA_TEXT], "answer": 1}


def write_task(folder: Path, name: str, rows: list[dict[str, Any]], **task: Any) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"dataset_path": "json", "dataset_kwargs": {"data_files": str(data)}, "test_split": "train"}
    texts = {"doc_to_text": "{{question}}", "doc_to_target": "answer"}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **files, **texts, **task}))


def evaluate(tasks: Path, kind: str, names: tuple[str, ...], model: dict[str, str], *options: str) -> Report:
    """Run lm-eval on a model and return its report."""
    folder = tasks / f"out-{time.monotonic_ns()}"
    facts = ",".join(f"{name}={value}" for name, value in model.items())
    command = [PYTHON, "-m", "lm_eval", "--model", kind, "--model_args", facts, "--tasks", ",".join(names)]
    command += ["--include_path", str(tasks), "--output_path", str(folder), "--log_samples", *options]
    finished = subprocess.run(
        command, cwd=tasks, env=ENVIRONMENT, capture_output=True, text=True, timeout=600
    )
    assert finished.returncode == 0, finished.stderr
    print(finished.stdout)
    (results,) = folder.rglob("results_*.json")
    scores = json.loads(results.read_text())["results"]
    return Report(
        {
            name: {s: scores[name][f"{s},none"] for s in SCORES if f"{s},none" in scores[name]}
            for name in names
        },
        {name: rows_of(folder, name) for name in names},
    )


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    (file,) = folder.rglob(f"samples_{name}_*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return sorted(rows, key=lambda row: row["doc_id"])


@pytest.fixture(scope="module")
def base_alone(tiny: Path, tasks: Path) -> Report:
    """Return the base with lm-eval's own backend, prompted with its chat template."""
    model = {"pretrained": str(tiny / "base"), "dtype": "float32"}
    return evaluate(tasks, "hf", BOTH, model, "--device", "cpu", "--apply_chat_template")


@pytest.fixture(scope="module")
def alpha_alone(tiny: Path, tasks: Path) -> Report:
    """Return the adapter with lm-eval's own backend, prompted with the bare texts."""
    model = {"pretrained": str(tiny / "base"), "peft": str(tiny / "alpha"), "dtype": "float32"}
    return evaluate(tasks, "hf", BOTH, model, "--device", "cpu")


def gateway_model(gateway: Server, path: str, model: str, **more: str) -> dict[str, str]:
    return {"model": model, "base_url": f"{gateway.url}/v1/{path}", "num_concurrent": "4", **more}


def test_the_compared_scores_distinguish_models(base_alone: Report, alpha_alone: Report) -> None:
    assert 0 < base_alone.scores["tiny_choice"]["acc"] < 1
    assert 0 < base_alone.scores["tiny_answer"]["exact_match"] < 1
    assert base_alone.scores != alpha_alone.scores


def test_completions_of_the_base_have_equal_scores(
    each_gateway: Server, tiny: Path, tasks: Path, base_alone: Report
) -> None:
    model = gateway_model(each_gateway, "completions", "base", tokenizer=str(tiny / "base"))
    report = evaluate(tasks, "local-completions", BOTH, model, "--apply_chat_template")
    assert_equal_reports(report, base_alone)


def test_chats_of_the_base_have_equal_scores(each_gateway: Server, tasks: Path, base_alone: Report) -> None:
    model = gateway_model(each_gateway, "chat/completions", "base")
    report = evaluate(tasks, "local-chat-completions", ANSWER, model, "--apply_chat_template")
    assert_equal_reports(report, base_alone)


def test_batched_completions_of_an_adapter_have_equal_scores(
    each_gateway: Server, tiny: Path, tasks: Path, alpha_alone: Report
) -> None:
    model = gateway_model(each_gateway, "completions", "alpha", tokenizer=str(tiny / "base"))
    report = evaluate(tasks, "local-completions", BOTH, model, "--batch_size", "8")
    assert_equal_reports(report, alpha_alone)


def assert_equal_reports(report: Report, alone: Report) -> None:
    """Assert equal scores, and equal results of each row."""
    for name, rows in report.samples.items():
        assert report.scores[name] == alone.scores[name]
        assert len(rows) == len(alone.samples[name]) > 10
        for row, other in zip(rows, alone.samples[name], strict=True):
            assert (row["doc"], row["target"]) == (other["doc"], other["target"])
            assert {s: row.get(s) for s in SCORES} == {s: other.get(s) for s in SCORES}
            assert_equal_responses(row["resps"], other["resps"])


def assert_equal_responses(responses: list[Any], others: list[Any]) -> None:
    """Assert equal texts, or equal log-probabilities and whether each is the most likely."""
    for (answer,), (other,) in zip(responses, others, strict=True):
        if isinstance(answer, str):
            assert answer == other
        else:
            assert float(answer[0]) == pytest.approx(float(other[0]), abs=TOLERANCE)
            assert answer[1] == other[1]
