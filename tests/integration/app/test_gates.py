"""Gates: which are refused at POST, which are a warning, and what follows when one is met or not."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from app.runs import lifecycle
from app.runs.attempt_outcome import AttemptOutcome
from app.storage.database import transaction
from app.tables import Dataset, Run, RunStatus, Worker
from tests.integration.app.test_graph import claim_names, end, statuses
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError

SFT = {"stage": "sft", "base": "org/base", "dataset": "train", "validation_dataset": "validation"}
EVALUATE = {
    "stage": "evaluate",
    "model": {"stage": "sft"},
    "baseline": "org/base",
    "dataset": "test",
    "metrics": ["maths_exact_match", "perplexity"],
}
# What a gate of a posted job may decide on is computed from its stages before anything is stored.
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
EXPORT = {"stage": "merge", "model": {"stage": "sft"}}


class GateNotMet(ProgramError):
    code = ErrorCode.gate_not_met


def gate(against: Any, **fields: Any) -> dict[str, Any]:
    return {"stage": "gate", "evaluation": "evaluate", "against": against, **fields}


@pytest.fixture(autouse=True)
def datasets(make_dataset: Callable[..., Dataset]) -> None:
    """Store the datasets of the jobs."""
    make_dataset("train")
    make_dataset("validation")
    make_dataset("test", row_count=300)
    make_dataset("tiny", row_count=3)


def post(client: TestClient, *stages: dict[str, Any], path: str = "") -> dict[str, Any]:
    return dict(client.post(f"/api/v1/jobs{path}", json={"name": "job", "stages": list(stages)}).json())


@on_sqlite
@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"evaluation": "sft"}, "evaluation", "evaluates no model"),
        ({"evaluation": "other"}, "evaluation", "No earlier stage is called 'other'"),
        ({"needs": ["sft"]}, "evaluation", "add 'evaluate' to `needs`"),
        ({"metric": "bleu"}, "metric", "it measures maths_exact_match, perplexity"),
        ({"role": "teacher"}, "role", "it evaluates model, baseline"),
        ({"against": "teacher"}, "against", "it evaluates model, baseline"),
        ({"against": "model"}, "against", "is the model itself"),
        ({"against": {"stage": "sft"}}, "against.stage", "evaluates no model"),
        ({"against": "evaluation_x"}, "against", "There is no evaluation evaluation_x"),
        ({"against": {"deployment": "x"}}, "against.deployment", "evaluate it first"),
        ({"against": 1.01}, "against", "the best value of maths_exact_match is 1"),
        ({"against": 0.9, "margin": -0.2}, "against", "No model can reach 1.1"),
        ({"against": 0.99}, "against", "300 rows that are all right"),
        ({"against": 0.5, "metric": "perplexity"}, "against", "the best value of perplexity is 1"),
        ({"margin": -1.0}, "margin", "above 1"),
        ({"against": 0.5, "on": "test"}, "", "on: bound"),
    ],
)
def test_a_gate_that_no_outcome_could_pass_is_refused_with_its_field(
    client: TestClient, fields: dict[str, Any], field: str, words: str
) -> None:
    error = post(client, SFT, EVALUATE, gate(**{"against": "baseline", **fields}))["error"]
    (found,) = error["fields"]
    assert found["field"].removeprefix("stages.2").lstrip(".") == field, found
    assert words in found["message"]


SUMS = {
    "task": "sums",
    "test_split": "test",
    "doc_to_text": "{{ question }}",
    "doc_to_target": "{{ answer }}",
    "metric_list": [{"metric": "exact_match"}, {"metric": "bleu"}],
}
LM_EVAL = {
    "stage": "lm_eval",
    "model": {"stage": "sft"},
    "tasks": [{"definition": SUMS, "data": [{"split": "test", "dataset": "test"}]}],
}
BASE = {**LM_EVAL, "name": "base", "model": "org/base", "needs": ["sft"]}
STOCK = {**LM_EVAL, "tasks": ["gsm8k"]}


@on_sqlite
@pytest.mark.parametrize(
    ("stage", "fields", "field", "words"),
    [
        (LM_EVAL, {"metric": "exact_match"}, "metric", "it measures sums/exact_match, sums/bleu"),
        (LM_EVAL, {"metric": "other/acc"}, "metric", "it measures sums/exact_match"),
        (STOCK, {"metric": "exact_match"}, "metric", "it measures gsm8k/<metric>"),
        (LM_EVAL, {"role": "baseline"}, "role", "it evaluates model"),
        (LM_EVAL, {"against": "baseline"}, "against", "it evaluates model"),
        (LM_EVAL, {"against": 1.5}, "against", "the best value of sums/exact_match is 1"),
        (LM_EVAL, {"against": 0.99}, "against", "300 rows that are all right"),
        (LM_EVAL, {"metric": "sums/bleu", "against": 20}, "on", "has no interval"),
        (LM_EVAL, {"metric": "sums/bleu", "against": {"stage": "base"}}, "against", "row by row"),
        ({**LM_EVAL, "max_rows": 3}, {"against": {"stage": "base"}}, "evaluation", "3 rows cannot show"),
        ({**LM_EVAL, "num_fewshot": 1}, {"against": {"stage": "base"}}, "against.stage", "other rows"),
    ],
)
def test_a_gate_on_a_stage_of_lm_eval_is_checked_as_far_as_its_tasks_are_known(
    client: TestClient, stage: dict[str, Any], fields: dict[str, Any], field: str, words: str
) -> None:
    of_stage = gate(**{"against": 0.5, "evaluation": "lm_eval", "needs": ["lm_eval", "base"], **fields})
    error = post(client, SFT, {**stage, "needs": ["sft"]}, BASE, of_stage)["error"]
    assert [one["field"] for one in error["fields"]] == [f"stages.3.{field}"], error
    assert words in error["fields"][0]["message"]


@on_sqlite
@pytest.mark.parametrize(
    ("stage", "fields"),
    [
        (LM_EVAL, {}),
        (LM_EVAL, {"metric": "sums/bleu", "against": 20, "on": "value"}),
        (LM_EVAL, {"against": {"stage": "base"}, "on": "test"}),
        (STOCK, {"metric": "gsm8k/exact_match,strict-match"}),
        ({**STOCK, "tasks": ["mmlu"]}, {"metric": "mmlu_anatomy/acc"}),
    ],
)
def test_a_gate_decides_on_a_stage_of_lm_eval(
    client: TestClient, stage: dict[str, Any], fields: dict[str, Any]
) -> None:
    of_stage = gate(**{"against": 0.5, "evaluation": "lm_eval", "needs": ["lm_eval", "base"], **fields})
    assert "id" in post(client, SFT, {**stage, "needs": ["sft"]}, BASE, of_stage)


def test_rows_of_lm_eval_that_selected_the_model_do_not_open_a_gate(client: TestClient) -> None:
    tasks = [{"definition": SUMS, "data": [{"split": "test", "dataset": "validation"}]}]
    found = post(client, SFT, {**LM_EVAL, "tasks": tasks}, gate(0.5, evaluation="lm_eval"))["error"]["fields"]
    assert "validation rows of stage 'sft'" in found[0]["message"]


STOP = {"against": "baseline", "margin": 0.02}
GROWING = {**EVALUATE, "early_stop": STOP}


@on_sqlite
@pytest.mark.parametrize(
    ("evaluation", "fields", "field", "words"),
    [
        (GROWING, {}, "on", "may stop early, which no other test allows for"),
        (EVALUATE, {"on": "sequential"}, "on", "has no `early_stop`"),
        (GROWING, {"on": "sequential", "margin": 0.1}, "margin", "has 0.02: repeat it here"),
        (GROWING, {"on": "sequential", "metric": "perplexity"}, "metric", "has 'maths_exact_match'"),
        (GROWING, {"on": "sequential", "against": 0.5}, "against", "has 'baseline'"),
        (GROWING, {"on": "sequential", "role": "baseline"}, "role", "decides about 'model'"),
        ({**GROWING, "max_rows": 8, "early_stop": {**STOP, "margin": 0}}, {"on": "sequential", "margin": 0},
         "evaluation", "8 rows cannot show"),
    ],
)  # fmt: skip
def test_a_gate_on_an_evaluation_that_may_stop_early_uses_its_decision(
    client: TestClient, evaluation: dict[str, Any], fields: dict[str, Any], field: str, words: str
) -> None:
    error = post(client, SFT, evaluation, gate(**{**STOP, **fields}))["error"]
    assert [one["field"] for one in error["fields"]] == [f"stages.2.{field}"]
    assert words in error["fields"][0]["message"]


def test_a_sequential_gate_is_accepted_with_its_power(client: TestClient) -> None:
    job = post(client, SFT, GROWING, gate(**STOP, on="sequential"))
    assert ["would be found with" in one["message"] for one in job["warnings"]] == [True]


def test_too_few_rows_for_any_conclusion_are_refused(client: TestClient) -> None:
    error = post(client, SFT, {**EVALUATE, "dataset": "tiny"}, gate("baseline"))["error"]
    assert "3 rows cannot show" in error["fields"][0]["message"]


@pytest.mark.parametrize("chain", [[], [{"stage": "dpo", "base": {"stage": "sft"}, "dataset": "pairs"}]])
def test_rows_that_selected_the_model_do_not_open_a_gate(
    client: TestClient, make_dataset: Callable[..., Dataset], chain: list[dict[str, Any]]
) -> None:
    make_dataset("pairs", format="preference")
    model = {"stage": chain[-1]["stage"] if chain else "sft"}
    evaluate = {**EVALUATE, "dataset": "validation", "model": model}
    position = len(chain) + 2
    found = post(client, SFT, *chain, evaluate, gate("baseline"))["error"]["fields"]
    assert [one["field"] for one in found] == [f"stages.{position}.evaluation"]
    assert "validation rows of stage 'sft'" in found[0]["message"]
    last = {**SFT, "keep_best": False}
    assert "id" in post(client, last, *chain, evaluate, gate("baseline"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"against": "baseline", "margin": 0.03, "on": "test"}, "would be found with 31 %"),
        ({"against": "baseline", "on": "test"}, "a true difference of 6.4 percentage points"),
        ({"against": "baseline", "margin": 0.1, "on": "test"}, None),
        ({"against": "baseline", "on": "value"}, None),
        ({"against": 0.0}, "always met"),
    ],
)
def test_a_gate_with_little_power_is_a_warning_of_the_plan_and_of_the_job(
    client: TestClient, fields: dict[str, Any], words: str | None
) -> None:
    stages = SFT, EVALUATE, gate(**fields)
    planned = post(client, *stages, path="/dry-run")["stages"][2]
    warned = [one["message"] for one in post(client, *stages)["warnings"] if one["run"] == "gate"]
    assert warned == planned["warnings"]
    assert [words in one for one in warned if words] == ([True] if words else [])


def test_the_plan_shows_the_graph(client: TestClient) -> None:
    branch = {**EXPORT, "name": "rescue", "needs": ["gate"], "when": "not_met"}
    plan = post(client, SFT, EVALUATE, gate("baseline"), EXPORT, branch, path="/dry-run")["stages"]
    assert [(one["name"], one["needs"], one["when"]) for one in plan[2:]] == [
        ("gate", ["evaluate"], "met"),
        ("merge", ["gate"], "met"),
        ("rescue", ["gate"], "not_met"),
    ]


@on_sqlite
@pytest.mark.parametrize(
    ("stage", "field", "words"),
    [
        ({**EXPORT, "name": "a", "needs": ["sft"], "when": "not_met"}, "when", "exactly one gate"),
        ({**EXPORT, "name": "a", "needs": ["merge", "rescue"]}, "needs", "can never start"),
    ],
)
def test_a_stage_that_no_outcome_starts_is_refused(
    client: TestClient, stage: dict[str, Any], field: str, words: str
) -> None:
    rescue = {**EXPORT, "name": "rescue", "needs": ["gate"], "when": "not_met"}
    (found,) = post(client, SFT, EVALUATE, gate("baseline"), EXPORT, rescue, stage)["error"]["fields"]
    assert found["field"] == f"stages.5.{field}" and words in found["message"]


def test_preflight_checks_the_stages_of_both_outcomes(client: TestClient) -> None:
    branch = {
        "stage": "prepare",
        "dataset": "train",
        "split": {"test": 1},
        "needs": ["gate"],
        "when": "not_met",
    }
    checked = post(client, SFT, EVALUATE, gate("baseline"), EXPORT, branch, path="/preflight")["job"]
    assert [(run["name"], run["when"]) for run in checked["runs"] if run["stage"] == "prepare"] == [
        ("prepare", "met")
    ]


def fail_gate(job: dict[str, Any]) -> None:
    """End the job's gate as a worker does whose gate is not met."""
    with transaction() as session:
        run = session.exec(select(Run).where(Run.job_id == job["id"], Run.name == "gate")).one()
        error = GateNotMet("The gate is not met.", details={"value": 0.1})
        lifecycle.end_attempt(session, run.id, AttemptOutcome(error), [], 3)


def start_gate(client: TestClient, worker: Worker, *stages: dict[str, Any]) -> dict[str, Any]:
    """Post a job and bring it to its gate, which a worker holds."""
    job = post(client, SFT, EVALUATE, gate("baseline"), *stages)
    for name in ("sft", "evaluate"):
        claim_names(worker)
        end(job, name, RunStatus.succeeded)
    assert claim_names(worker) == ["gate"]
    return job


def test_a_gate_that_is_not_met_fails_the_job_and_skips_what_needs_it(
    client: TestClient, make_worker: Callable[..., Worker]
) -> None:
    job = start_gate(client, make_worker(), EXPORT, {**EXPORT, "name": "last"})
    fail_gate(job)
    after = statuses(client, job)
    assert (after["job"], after["gate"], after["merge"], after["last"]) == (
        "failed",
        "failed",
        "skipped",
        "skipped",
    )
    view = client.get(f"/api/v1/jobs/{job['id']}").json()
    assert (view["error"]["code"], view["error"]["details"]) == ("gate_not_met", {"value": 0.1})
    assert view["runs"][3]["error"]["code"] == "skipped_by_gate"
    assert client.post(f"/api/v1/jobs/{job['id']}/retry").status_code == 200
    assert set(statuses(client, job).values()) == {"succeeded", "queued"}


def test_the_branch_for_a_gate_that_is_not_met_lets_the_job_succeed(
    client: TestClient, make_worker: Callable[..., Worker]
) -> None:
    worker = make_worker()
    rescue = {**EXPORT, "name": "rescue", "needs": ["gate"], "when": "not_met"}
    job = start_gate(client, worker, EXPORT, rescue)
    fail_gate(job)
    assert claim_names(worker) == ["rescue"]
    end(job, "rescue", RunStatus.succeeded)
    after = statuses(client, job)
    assert (after["job"], after["gate"], after["merge"]) == ("succeeded", "failed", "skipped")
    listed = client.get("/api/v1/jobs", params={"status": "succeeded"}).json()["items"]
    assert [one["id"] for one in listed] == [job["id"]]
    assert 'tunesmith_jobs{status="succeeded"} 1.0' in client.get("/metrics").text
    assert client.post(f"/api/v1/jobs/{job['id']}/retry").status_code == 409


def test_a_retry_keeps_the_decision_that_a_branch_followed(
    client: TestClient, make_worker: Callable[..., Worker]
) -> None:
    worker = make_worker()
    rescue = {**EXPORT, "name": "rescue", "needs": ["gate"], "when": "not_met"}
    job = start_gate(client, worker, EXPORT, rescue)
    fail_gate(job)
    claim_names(worker)
    end(job, "rescue", RunStatus.failed, error={"code": "config_invalid", "message": "It failed."})
    assert statuses(client, job)["job"] == "failed"
    assert client.post(f"/api/v1/jobs/{job['id']}/retry").status_code == 200
    after = statuses(client, job)
    assert (after["gate"], after["merge"], after["rescue"]) == ("failed", "skipped", "queued")


def test_the_branch_is_skipped_if_the_gate_is_met(
    client: TestClient, make_worker: Callable[..., Worker]
) -> None:
    worker = make_worker()
    rescue = {**EXPORT, "name": "rescue", "needs": ["gate"], "when": "not_met"}
    job = start_gate(client, worker, EXPORT, rescue)
    end(job, "gate", RunStatus.succeeded)
    assert statuses(client, job)["rescue"] == "skipped"
    assert claim_names(worker) == ["merge"]
    end(job, "merge", RunStatus.succeeded)
    assert statuses(client, job)["job"] == "succeeded"
