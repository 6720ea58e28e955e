"""The stages `fetch` and `record` against a stand-in of OpenAI that limits, fails, breaks off and dies.

Goal: no prompt with a recorded response is asked again, and none is lost, whatever ends the program.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from openai.types import FileObject, Model
from openai.types.chat import ChatCompletion
from openai.types.fine_tuning import FineTuningJob

import trainers.fetch.__main__ as fetch
import trainers.record.__main__ as record
from tests.conftest import ROOT
from tests.openai_stand_in import BASE, KEY, MODEL, OpenaiStandIn
from trainers.configs import parse_stage
from trainers.openai_account import client
from trainers.runtime.errors import ProgramError
from trainers.runtime.events import EventWriter

Rows = list[dict[str, Any]]


def chat_rows(count: int, name: str = "question") -> Rows:
    return [
        {
            "messages": [
                {"role": "developer", "content": "Shout."},
                {"role": "user", "content": f"{name} {n}"},
                {"role": "assistant", "content": f"{name} {n}".upper(), "weight": 1},
            ]
        }
        for n in range(count)
    ]


@pytest.fixture
def account() -> Iterator[OpenaiStandIn]:
    account = OpenaiStandIn()
    yield account
    account.die()


def start(
    stage: dict[str, Any], run_dir: Path, account: OpenaiStandIn, key: str = KEY
) -> subprocess.Popen[str]:
    config = run_dir.with_name(f"{run_dir.name}.json")
    config.write_text(json.dumps({"fine_tuned_model": MODEL, "requests_per_minute": 60_000, **stage}))
    command = [
        sys.executable,
        "-m",
        f"trainers.{stage['stage']}",
        "--config",
        str(config),
        "--run-dir",
        str(run_dir),
    ]
    environment = {**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": account.url}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(stage: dict[str, Any], run_dir: Path, account: OpenaiStandIn, key: str = KEY) -> dict[str, Any]:
    """Return the result or the error of a program that runs in this process: to start one costs a second."""
    run_dir.mkdir(exist_ok=True)
    config = parse_stage({"fine_tuned_model": MODEL, "requests_per_minute": 60_000, **stage})
    program = {"fetch": fetch, "record": record}[config.stage]
    variables = {"OPENAI_API_KEY": key, "OPENAI_BASE_URL": account.url}
    with pytest.MonkeyPatch.context() as patch, EventWriter(run_dir / "events.jsonl") as events:
        for name, value in variables.items():
            patch.setenv(name, value)
        try:
            result: dict[str, Any] = program.run(config, run_dir, events)
        except ProgramError as error:
            return error.as_dict()
    return result


def write(path: Path, rows: Rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text().splitlines()]


def wait_until_sent(account: OpenaiStandIn, count: int, program: subprocess.Popen[str]) -> None:
    while account.sent.total() < count:
        assert program.poll() is None, program.communicate()[1]
        time.sleep(0.005)


def test_the_stand_in_has_the_shapes_of_the_sdk(account: OpenaiStandIn) -> None:
    account.add_model(chat_rows(2), chat_rows(1))
    account.add_model(chat_rows(2))
    account.add_model(chat_rows(2))
    account.shutdown_dates[BASE] = "2027-01-14"
    openai = OpenAI(api_key=KEY, base_url=account.url, max_retries=0, _strict_response_validation=True)
    jobs = list(openai.fine_tuning.jobs.list(limit=2))
    assert [type(job) for job in jobs] == [FineTuningJob] * 3
    assert {type(model) for model in openai.models.list()} == {Model}
    assert isinstance(openai.files.retrieve(jobs[0].training_file), FileObject)
    assert openai.files.content(jobs[0].training_file).read() == account.files["file-training2"]
    chat = openai.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "a b"}], logprobs=True
    )
    assert isinstance(chat, ChatCompletion) and chat.choices[0].logprobs is not None


def test_files_are_fetched_and_split_the_same_way_each_time(account: OpenaiStandIn, tmp_path: Path) -> None:
    account.add_model(chat_rows(40), chat_rows(5, "check"))
    for _ in range(3):
        account.add_model(chat_rows(2), fine_tuned_model="ft:other")
    result = run({"stage": "fetch", "held_out_rows": 100}, tmp_path / "run", account)
    assert result["source"]["id"] == "ftjob-0"
    assert result["rows"] == {"training": 32, "held_out": 8, "prompts": 0}
    folder = tmp_path / "run/datasets"
    assert (folder / "training_file.jsonl").read_bytes() == account.files["file-training0"]
    assert result["files"]["validation_file"]["rows"] == 5
    held_out = read(folder / "test.jsonl")
    texts = {row["messages"][1]["content"] for row in held_out}
    assert texts.isdisjoint(row["messages"][1]["content"] for row in read(folder / "train.jsonl"))
    assert held_out[0]["messages"][0]["role"] == "developer" and "weight" not in held_out[0]["messages"][-1]
    assert result["tokens"]["basis"].startswith("3.64 bytes a token: ")
    again = run({"stage": "fetch"}, tmp_path / "again", account)
    assert again["tokens"] == result["tokens"]
    assert (tmp_path / "again/datasets/test.jsonl").read_bytes() == (folder / "test.jsonl").read_bytes()


def test_a_deleted_training_file_is_reported_and_replaced(account: OpenaiStandIn, tmp_path: Path) -> None:
    account.add_model(chat_rows(12), chat_rows(3, "check"))
    account.files.clear()
    error = run({"stage": "fetch"}, tmp_path / "run", account)
    assert error["code"] == "openai_refused"
    assert error["message"] == f"The training file file-training0 of {MODEL} is deleted at OpenAI."
    assert "--training-file FILE" in error["hint"]
    local = write(tmp_path / "local.jsonl", chat_rows(12))
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "one more"}, *chat_rows(1, "known")])
    result = run({"stage": "fetch", "dataset": local, "prompts": prompts}, tmp_path / "second", account)
    assert result["files"]["training_file"]["replaced"] is True
    assert "No such File" in result["files"]["validation_file"]["missing"]
    assert result["rows"] == {"training": 10, "held_out": 2, "prompts": 2}
    assert result["references"]["without"] == 1
    assert [row["part"] for row in read(tmp_path / "second/datasets/test.jsonl")][1:] == [
        "held_out",
        "prompts",
        "prompts",
    ]


def recording(tmp_path: Path, count: int, **fields: Any) -> dict[str, Any]:
    rows = [row | {"part": "held_out"} for row in chat_rows(count)]
    return {"stage": "record", "dataset": write(tmp_path / "rows.jsonl", rows), **fields}


def test_kills_lose_no_response_and_repeat_only_what_was_in_progress(
    account: OpenaiStandIn, tmp_path: Path
) -> None:
    account.add_model(chat_rows(12))
    account.seconds = 0.02
    account.faults = itertools.cycle(["ok", "limit", "ok", "ok", "fail", "ok", "break", "ok", "ok"])
    stage = recording(tmp_path, 60, concurrency=3)
    in_progress = 0
    for count in (15, 35):
        program = start(stage, tmp_path / "run", account)
        wait_until_sent(account, count, program)
        program.send_signal(signal.SIGKILL)
        program.communicate()
        recorded = {line["row"] for line in read_journal(tmp_path / "run") if "status" in line}
        asked = {line["asked"] for line in read_journal(tmp_path / "run") if "asked" in line}
        in_progress += len(asked - recorded)
    result = run(stage, tmp_path / "run", account)
    assert result["counts"] == {"recorded": 60} and result["asked_again"] == in_progress <= 6
    assert set(account.sent) == {f"question {n}" for n in range(60)}
    # A response that was sent whole a moment before the kill may not have been read.
    assert account.sent.total() - 60 <= in_progress
    rows = read(tmp_path / "run/datasets/test.jsonl")
    assert [row["prediction"] for row in rows] == [f"QUESTION {n}" for n in range(60)]


def read_journal(run_dir: Path) -> Rows:
    lines = (run_dir / "responses.jsonl").read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def test_recording_survives_the_death_of_the_account(account: OpenaiStandIn, tmp_path: Path) -> None:
    account.add_model(chat_rows(12))
    account.seconds = 0.02
    program = start(recording(tmp_path, 20), tmp_path / "run", account)
    wait_until_sent(account, 5, program)
    account.die()
    time.sleep(0.3)
    account.start()
    program.communicate(timeout=240)
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["counts"] == {"recorded": 20} and result["asked_again"] == 0
    assert result["with_logprobs"] == 20 and result["tokens"]["completion_tokens"] == 40


@pytest.mark.parametrize(
    ("fault", "key", "message"),
    [
        ("quota", KEY, "OpenAI's account has no quota left: You exceeded your current quota"),
        ("ok", "sk-wrong-0123456789abcdef", "OpenAI refuses the key: Incorrect API key provided"),
    ],
)
def test_a_refusal_ends_clearly_and_keeps_what_is_recorded(
    account: OpenaiStandIn, tmp_path: Path, fault: str, key: str, message: str
) -> None:
    account.add_model(chat_rows(12))
    account.faults = itertools.chain(["ok"] * 4, itertools.repeat(fault))
    error = run(recording(tmp_path, 12, concurrency=1), tmp_path / "run", account, key)
    assert error["code"] == "openai_refused" and error["message"].startswith(message)
    assert account.sent.total() == (4 if fault == "quota" else 0)
    assert key not in json.dumps(error)
    account.faults = iter(())
    assert run(recording(tmp_path, 12), tmp_path / "run", account)["counts"] == {"recorded": 12}
    assert set(account.sent.values()) == {1}


def test_no_request_is_sent_that_could_exceed_the_cost(account: OpenaiStandIn, tmp_path: Path) -> None:
    account.add_model(chat_rows(12))
    prices = {"input_price": 1000.0, "output_price": 1000.0, "max_completion_tokens": 100}
    stage = recording(tmp_path, 12, concurrency=1, **prices)
    error = run(stage | {"max_cost": 0.5}, tmp_path / "run", account)
    assert error["code"] == "cost_limit_reached" and 1 <= account.sent.total() < 12
    result = run(stage | {"max_cost": 5.0}, tmp_path / "run", account)
    assert result["cost"] == sum(result["tokens"].values()) / 1000 <= 5.0
    assert set(account.sent.values()) == {1}


def test_refused_prompts_and_missing_parameters_are_recorded(account: OpenaiStandIn, tmp_path: Path) -> None:
    account.add_model(chat_rows(12))
    account.unsupported = {"logprobs", "temperature"}
    account.refused_texts = {"question 1"}
    result = run(recording(tmp_path, 3), tmp_path / "run", account)
    assert result["counts"] == {"recorded": 2, "refused": 1} and result["with_logprobs"] == 0
    rows = read(tmp_path / "run/datasets/test.jsonl")
    assert [row["prediction"] for row in rows] == ["QUESTION 0", None, "QUESTION 2"]
    assert [row["prediction_status"] for row in rows] == ["recorded", "refused", "recorded"]
    assert "does not offer `logprobs`" in (tmp_path / "run/events.jsonl").read_text()
    assert account.bodies[-1].keys().isdisjoint({"logprobs", "temperature"})


PRICES = {"input_price": 1000.0, "output_price": 1000.0, "max_completion_tokens": 50}
# What a client of OpenAI may get from a proxy, or from a later version of its API.
MALFORMED: dict[str, dict[str, Any]] = {
    "no choices": {"choices": []},
    "choices of another type": {"choices": ["x"]},
    "no message": {"choices": [{"message": None}]},
    "content in parts": {"choices": [{"message": {"content": [{"type": "text", "text": "x"}]}}]},
    "half a character": {"choices": [{"message": {"content": "a\ud800"}}]},
    "a call without a function": {"choices": [{"message": {"content": None, "tool_calls": [{"x": 1}]}}]},
    "a response that fits into no row": {"choices": [{"message": {"content": "x" * 2_000_000}}]},
}


def test_malformed_responses_are_not_compared_and_do_not_end_the_recording(
    account: OpenaiStandIn, tmp_path: Path
) -> None:
    account.add_model(chat_rows(12))
    changes = iter(MALFORMED.values())
    account.change = lambda response: response | next(changes, {})
    stage = recording(tmp_path, len(MALFORMED) + 2, concurrency=1)
    result = run(stage, tmp_path / "run", account)
    assert result["counts"] == {"failed": len(MALFORMED), "recorded": 2}
    # A request that failed says nothing about the model: as a wrong response it would flatter the new one.
    assert [row["prediction_status"] for row in read(tmp_path / "run/datasets/test.jsonl")] == [
        "recorded"
    ] * 2
    events = (tmp_path / "run/events.jsonl").read_text()
    assert f"{len(MALFORMED)} of {len(MALFORMED) + 2} requests failed" in events
    n_asked = account.asked.total()
    assert run(stage, tmp_path / "run", account)["counts"] == result["counts"]
    assert account.asked.total() == n_asked


@pytest.mark.parametrize(
    "usage", [None, [1], {"prompt_tokens": "2", "completion_tokens": 1}, {"prompt_tokens": float("inf")}]
)
def test_responses_without_a_count_of_tokens_cost_the_most(
    account: OpenaiStandIn, tmp_path: Path, usage: Any
) -> None:
    account.add_model(chat_rows(12))
    account.change = lambda response: response | {"usage": usage}
    stage = recording(tmp_path, 12, concurrency=1, max_cost=1.0, **PRICES)
    for _ in range(2):
        error = run(stage, tmp_path / "run", account)
        assert error["code"] == "cost_limit_reached", error
    assert 1 <= account.asked.total() < 6


def test_responses_that_broke_off_count_with_their_highest_cost(
    account: OpenaiStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "BACKOFF_SECONDS", 0.001)
    account.add_model(chat_rows(12))
    account.n_broken = 2
    stage = recording(tmp_path, 12, concurrency=2, max_cost=1.0, **PRICES)
    for _ in range(2):
        error = run(stage, tmp_path / "run", account)
        assert error["code"] == "cost_limit_reached", error
    # Each may have cost 50 tokens of response and the bytes of its prompt, about 0.2 USD.
    assert account.asked.total() <= 5
    stage["max_cost"] = 100.0
    assert run(stage, tmp_path / "run", account)["cost"] > 12 * 2 * 0.05


@pytest.mark.parametrize(
    ("fields", "basis"),
    [
        ({"trained_tokens": 1}, "4 bytes of UTF-8 a token"),
        ({"trained_tokens": -(10**15)}, "4 bytes of UTF-8 a token"),
        ({"trained_tokens": 10**15}, "4 bytes of UTF-8 a token"),
        ({"method": {"type": "supervised", "supervised": {"hyperparameters": "auto"}}}, "3.64 bytes"),
        ({"method": "supervised", "hyperparameters": "auto"}, "4 bytes of UTF-8 a token"),
    ],
)
def test_an_estimate_does_not_follow_counts_that_cannot_be_of_the_rows(
    account: OpenaiStandIn, tmp_path: Path, fields: dict[str, Any], basis: str
) -> None:
    # A job without the fields of OpenAI's type hides no other.
    account.add_model(chat_rows(2), training_file=None, fine_tuned_model="ft:other")
    account.add_model(chat_rows(40), **fields)
    tokens = run({"stage": "fetch"}, tmp_path / "run", account)["tokens"]
    assert tokens["basis"].startswith(basis) and 100 < tokens["prompt"] < 300


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            {"type": "distillation"},
            "was trained by 'distillation'; known are: supervised, dpo, reinforcement.",
        ),
        ({"type": "reinforcement", "reinforcement": {}}, "names no grader."),
    ],
)
def test_a_method_that_cannot_be_repeated_is_refused_before_anything_is_paid(
    account: OpenaiStandIn, tmp_path: Path, method: dict[str, Any], message: str
) -> None:
    account.add_model(chat_rows(12), method=method)
    error = run({"stage": "fetch"}, tmp_path / "run", account)
    assert error["code"] == "config_invalid" and message in error["message"]


def test_a_repeated_prompt_is_recorded_once(account: OpenaiStandIn, tmp_path: Path) -> None:
    account.add_model(chat_rows(10) * 20)
    prompts = write(tmp_path / "prompts.jsonl", chat_rows(2, "other") * 3)
    result = run({"stage": "fetch", "prompts": prompts}, tmp_path / "run", account)
    assert result["rows"] == {"training": 160, "held_out": 2, "prompts": 2}
    assert "42 of the rows to record repeat the prompt" in (tmp_path / "run/events.jsonl").read_text()


def test_rows_that_differ_in_what_the_system_says_are_split(account: OpenaiStandIn, tmp_path: Path) -> None:
    rows = chat_rows(20)
    for number, row in enumerate(rows):
        row["messages"][:2] = [
            {"role": "system", "content": f"Text {number}"},
            {"role": "user", "content": "Go."},
        ]
    account.add_model(rows)
    result = run({"stage": "fetch"}, tmp_path / "run", account)
    assert result["rows"] == {"training": 16, "held_out": 4, "prompts": 0}


@pytest.mark.parametrize("seed", range(4))
def test_a_prompt_of_many_rows_does_not_take_them_from_training(
    account: OpenaiStandIn, tmp_path: Path, seed: int
) -> None:
    rows = chat_rows(100)
    for row in rows[::2]:
        row["messages"][1]["content"] = "Hello"
    account.add_model(rows)
    result = run({"stage": "fetch", "held_out_rows": 20, "seed": seed}, tmp_path / "run", account)
    assert result["rows"]["training"] >= 60


def test_a_prompt_that_is_trained_on_is_not_scored(account: OpenaiStandIn, tmp_path: Path) -> None:
    account.add_model(chat_rows(20))
    prompts = write(tmp_path / "prompts.jsonl", chat_rows(20) + chat_rows(1, "other"))
    result = run({"stage": "fetch", "prompts": prompts}, tmp_path / "run", account)
    # The four that are held out are recorded once.
    assert result["rows"] == {"training": 16, "held_out": 4, "prompts": 17}
    assert (result["references"]["with"], result["references"]["without"]) == (5, 16)
    assert "16 of the further prompts are among the rows" in (tmp_path / "run/events.jsonl").read_text()
