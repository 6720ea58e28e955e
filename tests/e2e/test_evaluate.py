"""Evaluations as stages of a job: engines started by the worker, and no row asked twice, whatever dies."""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.counting_engine import read_ledger
from tests.e2e.platform import SHORT_LEASE, Platform, find_children, sft_stage, wait_until

ROWS = 160
CONCURRENCY = 4


@pytest.fixture
def counting_worker(embedded: Platform, tmp_path: Path) -> Path:
    """Set an engine that counts requests for the workers to come, and return its file of requests.

    It completes as many as the file `allowed` says.
    """
    ledger = tmp_path / "ledger.jsonl"
    script = str(ROOT / "tests" / "counting_engine.py")
    command = [sys.executable, script, "--ledger", str(ledger), "--allowed", str(tmp_path / "allowed")]
    embedded.environment["TUNESMITH_ENGINE_COMMANDS"] = json.dumps({"hf": command})
    return ledger


def has_asked(ledger: Path, count: int) -> bool:
    return len(read_ledger(ledger)) >= count


def test_no_row_is_asked_twice_after_program_and_worker_were_killed_twice(
    embedded: Platform, counting_worker: Path
) -> None:
    embedded.upload("numbers", [{"question": f"Say {n}.", "answer": f"#### {n}"} for n in range(ROWS)])
    stage = {"stage": "evaluate", "model": "starter", "dataset": "numbers", "concurrency": CONCURRENCY}
    job = embedded.submit(stage | {"max_new_tokens": 8})
    allowed = counting_worker.with_name("allowed")
    allowed.write_text("0")
    worker = embedded.start_worker(**SHORT_LEASE)
    for part, target in enumerate(["program", "worker", "program", "worker"], start=1):
        wanted = part * ROWS // 6
        # The program waits for the next completion when it is killed, however late that is.
        allowed.write_text(str(wanted))
        wait_until(partial(has_asked, counting_worker, wanted + 1), 120, "too few requests")
        if target == "program":
            (program,) = find_children(worker, "trainers.evaluate")
            program.kill()
        else:
            os.kill(worker.pid, signal.SIGKILL)
            worker.wait()
            worker = embedded.start_worker(**SHORT_LEASE)
    allowed.write_text(str(2 * ROWS))
    ended = embedded.wait_until_finished(job)
    run = ended["runs"][0]
    assert ended["status"] == "succeeded", ended
    requests = read_ledger(counting_worker)
    assert {one["prompt"] for one in requests} == {f"Say {n}." for n in range(ROWS)}
    assert ROWS <= len(requests) <= ROWS + 4 * CONCURRENCY
    assert (run["attempt"], run["result"]["models"][0]["scores"][0]["value"]) == (5, 1.0)


def test_a_tuned_model_its_checkpoint_and_its_base_are_compared_on_one_engine(embedded: Platform) -> None:
    embedded.start_worker()
    trained = sft_stage(max_steps=20, save_every_steps=10)
    job = embedded.wait_until_finished(embedded.submit(trained))
    run = job["runs"][0]
    evaluation = {
        "stage": "evaluate",
        "model": run["model_id"],
        "baseline": "starter",
        "others": {"middle": {"run": run["id"], "step": 20}},
        "dataset": "train",
        "metrics": ["maths_exact_match", "exact_match"],
        "max_rows": 12,
        "max_new_tokens": 12,
    }
    (evaluated,) = embedded.wait_until_finished(embedded.submit(evaluation))["runs"]
    assert evaluated["status"] == "succeeded", evaluated
    result = evaluated["result"]
    assert [model["role"] for model in result["models"]] == ["model", "baseline", "middle"]
    tuned, base, middle = (model["provenance"] for model in result["models"])
    assert tuned["model"]["model_id"] == run["model_id"] and middle["model"]["run_id"] == run["id"]
    assert tuned["engine"] == base["engine"] == middle["engine"]
    assert tuned["template_sha256"] == base["template_sha256"]
    assert tuned["engine"]["packages"].keys() >= {"torch", "transformers"}
    # The test rows are its training rows.
    assert {tuple(one["models"]) for one in result["details"]["contamination"]} == {("model", "middle")}
    assert any("scores measure memory" in warning for warning in result["warnings"])
    # The checkpoint is the model.
    [same] = [one for one in result["differences"] if one["other"] == "middle"][:1]
    assert (same["difference"], same["ties"]) == (0, 12)
