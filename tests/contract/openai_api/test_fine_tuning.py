"""OpenAI's Fine-tuning API without training, through its official client."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from openai.types.fine_tuning import FineTuningJob as OpenAIJob
from starlette.testclient import TestClient

MODEL = "gpt-4o-mini-2024-07-18"
ROWS = [
    {"messages": [{"role": "user", "content": f"{n} + 1"}, {"role": "assistant", "content": str(n + 1)}]}
    for n in range(12)
]
PAIRS = [
    {
        "input": {"messages": [{"role": "user", "content": f"{n} + 1"}]},
        "preferred_output": [{"role": "assistant", "content": str(n + 1)}],
        "non_preferred_output": [{"role": "assistant", "content": str(n)}],
    }
    for n in range(12)
]
GRADER = {
    "type": "string_check",
    "name": "exact",
    "operation": "eq",
    "input": "{{ sample.output_text }}",
    "reference": "4",
}
REINFORCEMENT = {"type": "reinforcement", "reinforcement": {"grader": GRADER}}


@pytest.fixture(autouse=True)
def _map_openai_names(monkeypatch: pytest.MonkeyPatch) -> None:
    bases = {MODEL: "org/tiny", "gpt-4.1-nano": {"base": "org/nano", "training": {"max_length": 64}}}
    monkeypatch.setenv("TUNESMITH_OPENAI_MODELS", json.dumps(bases))
    monkeypatch.setenv("TUNESMITH_ORGANIZATION", "acme")


def upload(openai: OpenAI, rows: Any = ROWS, purpose: Any = "fine-tune") -> str:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return openai.files.create(file=("rows.jsonl", content), purpose=purpose).id


def create(openai: OpenAI, **fields: Any) -> OpenAIJob:
    fields = {"model": MODEL, **fields}
    if "training_file" not in fields:
        fields["training_file"] = upload(openai)
    return openai.fine_tuning.jobs.create(**fields)


def test_a_job_is_queued_with_a_number_for_each_automatic_hyperparameter(openai: OpenAI) -> None:
    job = create(openai, suffix="Support Bot", metadata={"team": "a"}, seed=7)
    assert (job.status, job.object, job.model, job.seed) == ("queued", "fine_tuning.job", MODEL, 7)
    assert job.hyperparameters.to_dict() == {
        "n_epochs": 9,
        "batch_size": 1,
        "learning_rate_multiplier": 1.0,
    }
    assert job.method is not None and job.method.type == "supervised"
    assert (job.fine_tuned_model, job.error, job.result_files, job.finished_at) == (None, None, [], None)
    assert (job.organization_id, job.metadata) == ("acme", {"team": "a"})
    assert openai.fine_tuning.jobs.retrieve(job.id) == job


def test_an_event_names_the_inputs_and_formulas_of_automatic_values(openai: OpenAI) -> None:
    job = create(openai, method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}})
    events = list(openai.fine_tuning.jobs.list_events(job.id, limit=1))
    assert [event.message for event in events][-1] == (
        f"Created fine-tuning job: {job.id}, which is our job {job.job}."  # type: ignore[attr-defined]
    )
    assert events[-2].message == (
        "Hyperparameters for 12 rows: n_epochs = 2 (given); batch_size = 1 (auto: the power of 2 up to 16 "
        "that leaves 100 steps of 12 × 2); learning_rate_multiplier = 1 (auto: 1); learning_rate = 0.0002 = "
        "1 × 0.0002, the rate of sft with lora tuning."
    )
    assert [event.level for event in events] == ["info"] * 3


def test_the_job_is_one_of_ours_with_one_training_stage(openai: OpenAI, client: TestClient) -> None:
    job = create(openai, model="gpt-4.1-nano", suffix="x")
    own = client.get(f"/api/v1/jobs/{job.job}").json()  # type: ignore[attr-defined]
    assert own["labels"] == {"fine_tuning_job": job.id}
    assert own["name"] == f"ft:gpt-4.1-nano:acme:x:{job.id[-8:]}"
    config = own["runs"][0]["config"]
    assert (config["stage"], config["base"], config["max_length"]) == ("sft", "org/nano", 64)
    assert (config["epochs"], config["save_every_epoch"], config["keep_best"]) == (9, True, False)


def test_dpo_trains_on_openais_preference_rows(openai: OpenAI, client: TestClient) -> None:
    method: Any = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "learning_rate_multiplier": 2}}}
    job = create(openai, training_file=upload(openai, PAIRS), method=method)
    assert job.method is not None and job.method.dpo is not None
    assert job.method.dpo.hyperparameters is not None and job.method.dpo.hyperparameters.beta == 0.2
    run = client.get(f"/api/v1/jobs/{job.job}").json()["runs"][0]  # type: ignore[attr-defined]
    assert (run["stage"], run["config"]["beta"], run["config"]["learning_rate"]) == ("dpo", 0.2, 2e-5)


def test_a_job_is_paused_resumed_and_cancelled(openai: OpenAI) -> None:
    job = create(openai)
    jobs = openai.fine_tuning.jobs
    assert jobs.pause(job.id).status == "paused"  # type: ignore[comparison-overlap]
    assert jobs.resume(job.id).status == "queued"
    cancelled = jobs.cancel(job.id)
    assert (cancelled.status, cancelled.error) == ("cancelled", None)
    assert cancelled.finished_at is not None
    with pytest.raises(BadRequestError) as caught:
        jobs.resume(job.id)
    assert caught.value.code == "job_status_conflict"


def test_jobs_are_listed_in_pages_and_by_metadata(openai: OpenAI) -> None:
    file = upload(openai)
    ids = [
        create(openai, training_file=file, metadata=metadata).id
        for metadata in ({"team": "a"}, {"team": "b"}, None)
    ]
    jobs = openai.fine_tuning.jobs
    assert [job.id for job in jobs.list(limit=1)] == ids[::-1]
    assert [job.id for job in jobs.list(metadata={"team": "a"})] == ids[:1]
    assert [job.id for job in jobs.list(extra_query={"metadata": "null"})] == ids[2:]


def test_many_jobs_are_created_at_once(openai: OpenAI) -> None:
    file = upload(openai)
    with ThreadPoolExecutor(20) as pool:
        jobs = list(pool.map(lambda n: create(openai, training_file=file, suffix=f"n{n}"), range(20)))
    assert len({job.id for job in jobs}) == 20
    assert {job.id for job in openai.fine_tuning.jobs.list()} == {job.id for job in jobs}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": "gpt-5"}, "model", "model_not_found"),
        ({"model": "ft:gpt-5:acme::abc"}, "model", "model_not_found"),
        ({"training_file": "file-missing"}, "training_file", "file_not_found"),
        ({"validation_file": "file-missing"}, "validation_file", "file_not_found"),
        ({"suffix": "x" * 65}, "suffix", "invalid"),
        ({"seed": -1}, "seed", "invalid"),
        ({"method": {"type": "bananas"}}, "method.type", "invalid"),
        ({"method": {"type": "dpo", "supervised": {}}}, "method.supervised", "invalid"),
        ({"method": {"type": "reinforcement"}}, "method.reinforcement", "invalid"),
        (
            {"method": {"type": "reinforcement", "reinforcement": {"grader": {"type": "x"}}}},
            "method.reinforcement.grader.type",
            "invalid",
        ),
        ({"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs", "invalid"),
        ({"hyperparameters": {"n_epochs": 1}, "method": {"type": "dpo"}}, "hyperparameters", "invalid"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k", "invalid"),
        ({"extra_body": {"colour": "red"}}, "colour", "unknown_parameter"),
        ({"extra_body": {"training": {"max_lenght": 8}}}, "training.max_lenght", "invalid"),
        ({"extra_body": {"training": {"epochs": 2}}}, "training.epochs", "invalid"),
        ({"extra_body": {"training": {"base": "/etc"}}}, "training.base", "invalid"),
        ({"extra_body": {"training": {"keep_best": True}}}, "training.keep_best", "invalid"),
        ({"extra_body": {"training": {"log_every_steps": 1}}}, "training.log_every_steps", "invalid"),
        (
            {"method": REINFORCEMENT, "extra_body": {"training": {"num_generations": 4}}},
            "training.num_generations",
            "invalid",
        ),
        ({"extra_body": {"training": {"sweep": {"seed": [1, 2]}}}}, "training", "invalid"),
        ({"model": "../../etc"}, "model", "model_not_found"),
        ({"model": "/etc"}, "model", "model_not_found"),
        ({"integrations": [{"type": "mlflow"}]}, "integrations.0.type", "invalid"),
    ],
)
def test_an_invalid_parameter_is_named(openai: OpenAI, fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        create(openai, **fields)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert list(openai.fine_tuning.jobs.list()) == []


def test_the_error_of_a_number_names_its_bound(openai: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="less than or equal to 50"):
        create(openai, hyperparameters={"n_epochs": 51})


def test_a_base_may_have_a_longer_name_than_a_job(openai: OpenAI) -> None:
    job = create(openai, model=f"org/{'x' * 190}", suffix="y" * 40)
    assert openai.fine_tuning.jobs.retrieve(job.id) == job


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("rows", "purpose", "method", "code"),
    [
        (PAIRS, "fine-tune", "supervised", "invalid"),
        (ROWS, "fine-tune", "dpo", "invalid"),
        ([*ROWS, {"messages": []}], "fine-tune", "supervised", "dataset_not_ready"),
        (ROWS, "batch", "supervised", "file_not_found"),
    ],
)
def test_a_file_that_the_method_cannot_use_is_refused(
    openai: OpenAI, rows: Any, purpose: str, method: str, code: str
) -> None:
    with pytest.raises(BadRequestError) as caught:
        create(openai, training_file=upload(openai, rows, purpose), method={"type": method})
    assert (caught.value.param, caught.value.code) == ("training_file", code)
    assert "stages.0" not in str(caught.value)


def test_an_unknown_job_or_model_is_a_404(openai: OpenAI) -> None:
    jobs, permissions = openai.fine_tuning.jobs, openai.fine_tuning.checkpoints.permissions
    for call in (
        jobs.retrieve,
        jobs.cancel,
        jobs.pause,
        jobs.resume,
        jobs.list_events,
        jobs.checkpoints.list,
    ):
        with pytest.raises(NotFoundError) as caught:
            call("ftjob-missing")
        assert caught.value.code == "job_not_found"
    with pytest.raises(NotFoundError) as caught:
        permissions.create("ft:missing", project_ids=["p"])
    assert caught.value.code == "model_not_found"
    with pytest.raises(NotFoundError):
        permissions.delete("cp_missing", fine_tuned_model_checkpoint="ft:missing")


def test_a_job_that_was_deleted_as_one_of_ours_is_gone(openai: OpenAI, client: TestClient) -> None:
    job = create(openai)
    openai.fine_tuning.jobs.cancel(job.id)
    assert client.delete(f"/api/v1/jobs/{job.job}").status_code == 204  # type: ignore[attr-defined]
    assert list(openai.fine_tuning.jobs.list()) == []
