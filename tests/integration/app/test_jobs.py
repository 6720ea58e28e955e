"""Jobs over HTTP: creating, resolving, listing and reading."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import col, select
from starlette.testclient import TestClient

from app.jobs.examples import JOB_EXAMPLES
from app.jobs.schemas import JobCreate
from app.models.starter import STARTER, find_progress_file
from app.scheduling.queue import get_notifier
from app.settings import Settings
from app.storage.database import read_session, transaction
from app.tables import Dataset, Event, Job, Model, ModelKind, Run, RunStatus, Worker
from trainers.configs import Queue, StageKind, StageLimits
from trainers.data.formats import RowFormat

SFT = {"stage": "sft", "base": "org/base", "dataset": "rows"}
EVALUATE = {"stage": "evaluate", "model": {"stage": "sft"}, "dataset": "rows"}
DEPLOY = {"stage": "deploy", "model": {"stage": "sft"}, "deployment": "tuned"}


@pytest.fixture
def rows(make_dataset: Callable[..., Dataset]) -> Dataset:
    return make_dataset("rows")


def spec(*stages: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {"name": "job", "stages": list(stages or [SFT])} | values


def list_errors(client: TestClient, body: dict[str, Any]) -> dict[str, str]:
    """Post an invalid spec; return the messages of the 422 by field."""
    response = client.post("/api/v1/jobs", json=body)
    assert response.status_code == 422, response.text
    return {field["field"]: field["message"] for field in response.json()["error"]["fields"]}


def test_a_new_job_is_queued_with_its_runs_and_events(client: TestClient, rows: Dataset) -> None:
    response = client.post("/api/v1/jobs", json=spec(SFT, EVALUATE, DEPLOY, priority=7, labels={"team": "a"}))
    assert response.status_code == 201
    job = response.json()
    assert (job["status"], job["priority"], job["labels"]) == ("queued", 7, {"team": "a"})
    assert [run["name"] for run in job["runs"]] == ["sft", "evaluate", "deploy"]
    by_run = select(Event).order_by(col(Event.run_id), col(Event.seq))
    with read_session() as session:
        assert [(event.seq, event.data["status"]) for event in session.exec(by_run)] == [(1, "queued")] * 3


def test_a_new_job_notifies_the_queue_of_its_first_stage(
    client: TestClient, rows: Dataset, settings: Settings
) -> None:
    client.post("/api/v1/jobs", json=spec(SFT | {"queue": "cuda"}, EVALUATE))
    assert get_notifier().wait(60)
    assert [message.name.split(".")[-2] for message in (settings.data_dir / "queue/messages").iterdir()] == [
        "cuda"
    ]


def test_the_config_of_a_run_has_every_default_resolved(client: TestClient, rows: Dataset) -> None:
    config = client.post("/api/v1/jobs", json=spec()).json()["runs"][0]["config"]
    assert config["dataset"] == rows.id
    assert (config["name"], config["queue"], config["learning_rate"], config["micro_batch_size"]) == (
        "sft",
        "cpu",
        2e-4,
        8,
    )


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("body", "field"),
    [
        (spec(SFT | {"learning_rate": 2}), "stages.0.learning_rate"),
        (spec(SFT | {"learning_rat": 1e-4}), "stages.0.learning_rat"),
        (spec(SFT | {"tuning": {"method": "lora", "rank": 0}}), "stages.0.tuning.rank"),
        (spec(SFT | {"base": {"stage": "Not A Name"}}), "stages.0.base.stage"),
        (spec(SFT | {"base": 5}), "stages.0.base"),
        (spec({"stage": "sft", "base": "org/base"}), "stages.0.dataset"),
        (spec({"stage": "dance"}), "stages.0.stage"),
        (spec({"base": "org/base"}), "stages.0.stage"),
        (spec(SFT | {"tuning": {"method": ["lora"]}}), "stages.0.tuning.method"),
        (spec(SFT | {"max_steps": 10**30}), "stages.0.max_steps"),
        (spec(SFT | {"base": "a/b\0"}), "stages.0.base"),
        (spec(SFT, name="a\0b"), "name"),
        (spec(SFT, labels={"team": "\x1b[2J"}), "labels.team"),
        (spec(SFT | {"batch_size": 10, "micro_batch_size": 4}), "stages.0"),
        (spec(SFT, priority=101), "priority"),
        (spec(SFT, queue="gpu"), "queue"),
        (spec(SFT, labels={"a:b": "c"}), "labels.a:b"),
        ({"name": "job", "stages": []}, "stages"),
        ({"stages": [SFT]}, "name"),
        (spec(SFT, SFT), "stages.1.name"),
        (spec(SFT | {"base": {"stage": "later"}}), "stages.0.base"),
        (spec(EVALUATE, SFT), "stages.0.model"),
        (spec(SFT, EVALUATE, DEPLOY | {"model": {"stage": "evaluate"}}), "stages.2.model"),
        (spec(SFT | {"dataset": "unknown"}), "stages.0.dataset"),
        (spec(SFT | {"base": "model_unknown"}), "stages.0.base"),
        (spec(SFT | {"base": {"base": "a/b", "adapter": "c"}}), "stages.0.base"),
        (spec(SFT | {"base": "/etc"}), "stages.0.base"),
        (spec(SFT | {"base": "./models/../../outside"}), "stages.0.base"),
        (spec(SFT | {"base": "starter/../../outside"}), "stages.0.base"),
        (spec(SFT | {"base": "neither-folder-nor-hub-id"}), "stages.0.base"),
        (spec(SFT | {"base": "x" * 1000}), "stages.0.base"),
    ],
)
def test_an_invalid_job_is_refused_with_the_name_of_the_field(
    client: TestClient, rows: Dataset, body: dict[str, Any], field: str
) -> None:
    assert list(list_errors(client, body)) == [field]
    assert client.get("/api/v1/jobs").json()["items"] == []


def test_every_invalid_field_is_named_at_once(client: TestClient) -> None:
    assert set(list_errors(client, spec(SFT | {"base": "nowhere"}))) == {"stages.0.base", "stages.0.dataset"}


def test_the_hint_of_an_invalid_job_belongs_to_its_message(client: TestClient) -> None:
    body = spec(SFT | {"dataset": "unknown"}, DEPLOY | {"model": "nowhere"})
    error = client.post("/api/v1/jobs", json=body).json()["error"]
    assert "No dataset has the id or name 'unknown'" in error["message"]
    assert "folder" not in (error["hint"] or "")


def test_the_example_model_that_is_still_trained_is_refused_with_its_progress(
    client: TestClient, rows: Dataset, settings: Settings
) -> None:
    progress = find_progress_file(settings)
    progress.parent.mkdir()
    progress.write_text('{"step": 340, "total_steps": 800, "remaining_seconds": 44.2}')
    error = client.post("/api/v1/jobs", json=spec(SFT | {"base": STARTER})).json()["error"]
    assert "step 340 of 800 (42 %), about 45 s left" in error["message"] and "Wait" in error["hint"]
    assert "step 340 of 800" in client.get("/readyz").json()["examples"]
    # Nobody renews the file any more: its process was killed.
    os.utime(progress, (1, 1))
    error = client.post("/api/v1/jobs", json=spec(SFT | {"base": STARTER})).json()["error"]
    assert "'starter' is not a folder" in error["message"] and "--with-examples" in error["hint"]


def test_a_body_that_is_not_json_is_refused_with_a_clear_message(client: TestClient) -> None:
    response = client.post("/api/v1/jobs", content="{oops", headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert "not JSON" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "content", [b'{"name": "\xe9"}', b"[" * 100_000, b'{"priority": ' + b"9" * 5000 + b"}"]
)
def test_a_body_that_no_parser_accepts_is_refused_like_any_other(client: TestClient, content: bytes) -> None:
    response = client.post("/api/v1/jobs", content=content, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (422, "invalid")
    assert "application/json" in response.json()["error"]["hint"]


def test_a_body_of_another_type_is_refused_with_a_hint(client: TestClient) -> None:
    response = client.post("/api/v1/jobs", content=b"{}", headers={"content-type": "text/plain"})
    assert response.status_code == 422 and "application/json" in response.json()["error"]["hint"]


def test_a_character_that_the_database_cannot_store_is_not_an_internal_error(
    client: TestClient, rows: Dataset
) -> None:
    assert client.post("/api/v1/jobs", json=spec(name="a\0b")).status_code in (201, 422)


def test_a_folder_is_found_by_its_name_but_not_through_a_link_that_leaves_the_roots(
    client: TestClient, rows: Dataset, settings: Settings, tmp_path: Path
) -> None:
    (settings.model_roots[0] / "starter").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (settings.model_roots[0] / "link").symlink_to(tmp_path / "outside")
    job = client.post("/api/v1/jobs", json=spec(SFT | {"base": "starter"}))
    assert job.json()["runs"][0]["config"]["base"] == str(settings.model_roots[0] / "starter")
    assert "TUNESMITH_MODEL_ROOTS" in client.post("/api/v1/jobs", json=spec(SFT | {"base": "link"})).text


def test_a_dataset_with_faults_is_refused_with_its_first_fault(
    client: TestClient, make_dataset: Callable[..., Dataset]
) -> None:
    fault = {"line": 3, "field": "prompt", "code": "empty_text", "message": "The prompt is empty."}
    make_dataset("rows", fault_count=2, report={"faults": [fault]})
    response = client.post("/api/v1/jobs", json=spec())
    assert (response.status_code, response.json()["error"]["code"]) == (409, "dataset_not_ready")
    assert "Line 3: The prompt is empty." in response.json()["error"]["message"]


@pytest.mark.parametrize("stage", [SFT, EVALUATE | {"model": "org/base"}])
def test_preference_pairs_are_refused_before_hardware_is_used(
    client: TestClient, make_dataset: Callable[..., Dataset], stage: dict[str, Any]
) -> None:
    make_dataset("rows", format=RowFormat.preference)
    assert "`chosen`" in list_errors(client, spec(stage))["stages.0.dataset"]


@pytest.mark.parametrize(
    ("labels", "refused"),
    [
        ({"true": 2, "false": 1}, None),
        ({"true": 2}, "1 of 3 rows of dataset"),
        ({"true": 3}, "All 3 rows of dataset"),
        ({}, "3 of 3 rows of dataset"),
    ],
)
def test_kto_needs_a_label_in_every_row_and_both_labels(
    client: TestClient, make_dataset: Callable[..., Dataset], labels: dict[str, int], refused: str | None
) -> None:
    make_dataset("rows", row_count=3, report={"statistics": {"labels": labels}})
    stage = {"stage": "kto", "base": "org/model", "dataset": "rows"}
    if refused is None:
        assert client.post("/api/v1/jobs", json=spec(stage)).status_code == 201
    else:
        assert refused in list_errors(client, spec(stage))["stages.0.dataset"]


def test_rows_labelled_as_bad_are_refused_for_a_stage_that_would_learn_them(
    client: TestClient, make_dataset: Callable[..., Dataset]
) -> None:
    make_dataset("rows", row_count=3, report={"statistics": {"labels": {"true": 2, "false": 1}}})
    errors = list_errors(client, spec({"stage": "sft", "base": "org/model", "dataset": "rows"}))
    assert "1 of 3 rows" in errors["stages.0.dataset"] and "only kto reads" in errors["stages.0.dataset"]


def test_kto_reads_pairs_and_a_teacher_is_resolved_like_a_base(
    client: TestClient, make_dataset: Callable[..., Dataset]
) -> None:
    make_dataset("rows", format=RowFormat.preference)
    kto = {"stage": "kto", "base": "org/model", "dataset": "rows"}
    distill = {"stage": "distill", "base": "org/small", "teacher": {"stage": "kto"}, "dataset": "rows"}
    runs = client.post("/api/v1/jobs", json=spec(kto, distill)).json()["runs"]
    assert runs[1]["config"]["teacher"] == {"stage": "kto"}
    unknown = distill | {"teacher": "model_0"}
    assert "stages.1.teacher" in list_errors(client, spec(kto, unknown))


def test_preflight_checks_a_student_with_the_model_that_its_teacher_started_from(
    client: TestClient, rows: Dataset
) -> None:
    sft = {"stage": "sft", "base": "org/large", "dataset": "rows"}
    distill = {"stage": "distill", "base": "org/small", "teacher": {"stage": "sft"}, "dataset": "rows"}
    job = client.post("/api/v1/jobs/preflight", json=spec(sft, distill)).json()["job"]
    target = job["runs"][1]["config"]["target"]
    assert (target["base"], target["teacher"]) == ("org/small", "org/large")
    taught_by_itself = spec(sft, distill | {"base": "org/large"})
    job = client.post("/api/v1/jobs/preflight?probe_steps=5", json=taught_by_itself).json()["job"]
    assert [run["config"]["probe_steps"] for run in job["runs"]] == [5, 0]


def test_documents_are_refused_where_a_prompt_is_needed(
    client: TestClient, make_dataset: Callable[..., Dataset]
) -> None:
    make_dataset("rows", format=RowFormat.text)
    errors = list_errors(client, spec(EVALUATE | {"model": "org/base"}))
    assert "rows of `text` without a prompt" in errors["stages.0.dataset"]
    assert client.post("/api/v1/jobs/dry-run", json=spec(SFT | {"template": "transcript"})).status_code == 200


@pytest.mark.parametrize("after", ["zzz", "0", "job_", "job_\0"])
def test_a_cursor_that_no_page_gave_is_list_errors(client: TestClient, after: str) -> None:
    response = client.get("/api/v1/jobs", params={"after": after})
    assert (response.status_code, response.json()["error"]["fields"][0]["field"]) == (422, "after")


def test_a_name_refers_to_its_newest_dataset(
    client: TestClient, rows: Dataset, make_dataset: Callable[..., Dataset]
) -> None:
    newer = make_dataset("rows")
    assert client.post("/api/v1/jobs", json=spec()).json()["runs"][0]["config"]["dataset"] == newer.id


def test_an_idempotency_key_creates_one_job(client: TestClient, rows: Dataset) -> None:
    headers = {"Idempotency-Key": "once"}
    first = client.post("/api/v1/jobs", json=spec(), headers=headers)
    again = client.post("/api/v1/jobs", json=spec(), headers=headers)
    other = client.post("/api/v1/jobs", json=spec(name="other"), headers=headers)
    assert [first.status_code, again.status_code, other.status_code] == [201, 200, 409]
    assert again.json()["id"] == first.json()["id"] and again.headers["idempotent-replay"] == "true"


def test_concurrent_posts_with_one_idempotency_key_create_one_job(client: TestClient, rows: Dataset) -> None:
    def post(_: int) -> tuple[int, str]:
        response = client.post("/api/v1/jobs", json=spec(), headers={"Idempotency-Key": "race"})
        return response.status_code, response.json()["id"]

    with ThreadPoolExecutor(6) as pool:
        responses = list(pool.map(post, range(6)))
    assert sorted(status for status, _ in responses) == [200] * 5 + [201]
    assert len({job_id for _, job_id in responses}) == 1
    with read_session() as session:
        assert len(session.exec(select(Job)).all()) == len(session.exec(select(Run)).all()) == 1


def test_a_dry_run_returns_the_plan_and_queues_nothing(
    client: TestClient, rows: Dataset, make_worker: Callable[..., Worker]
) -> None:
    make_worker(name="mac")
    sft, evaluate = client.post(
        "/api/v1/jobs/dry-run", json=spec(SFT | {"epochs": 2, "batch_size": 16}, EVALUATE | {"queue": "cuda"})
    ).json()["stages"]
    assert sft["dataset"] == {"id": rows.id, "name": "rows", "sha256": rows.sha256, "rows": 100}
    assert (sft["models"], sft["estimated_steps"], sft["workers"]) == ({"base": "org/base"}, 13, ["mac"])
    assert sft["resume_guarantee"] == {"exactness": "exact", "reasons": []}
    assert evaluate["resume_guarantee"]["exactness"] == "approximate"
    assert (evaluate["workers"], evaluate["models"]) == ([], {"model": {"stage": "sft"}})
    assert "python -m workers --queue cuda" in evaluate["waiting_for"]
    assert client.get("/api/v1/jobs").json()["items"] == []


def test_a_dry_run_states_how_small_a_difference_an_evaluation_would_find(
    client: TestClient, rows: Dataset
) -> None:
    pair = EVALUATE | {"name": "pair", "baseline": "org/base"}
    few = pair | {"name": "few", "max_rows": 4}
    stages = client.post("/api/v1/jobs/dry-run", json=spec(SFT, EVALUATE, pair, few)).json()["stages"]
    sft, alone, compared, small = (stage["power"] for stage in stages)
    assert sft is alone is None
    assert compared.startswith("With 100 rows, a true difference of about 12 percentage points would be")
    assert small.startswith("4 rows cannot show a difference")


def test_a_dry_run_warns_of_training_that_takes_hours_on_a_cpu(
    client: TestClient, make_dataset: Callable[..., Dataset], make_worker: Callable[..., Worker]
) -> None:
    make_dataset("many", size_bytes=12_000_000, row_count=10_000)
    make_worker(hardware={"cpus": 8, "gpus": [], "unused": "This host has a GPU without a driver."})
    small = {"stage": "sft", "base": "org/tiny-0.5M", "dataset": "many"}
    large = small | {"base": "Qwen/Qwen2.5-0.5B-Instruct", "name": "large"}
    stages = client.post("/api/v1/jobs/dry-run", json=spec(small, large)).json()["stages"]
    assert [stage["queue"] for stage in stages] == ["cpu", "cpu"]
    assert stages[1]["queue_reason"].endswith("or an Apple chip. This host has a GPU without a driver.")
    assert stages[0]["warnings"] == []
    assert stages[1]["warnings"][0].startswith(
        "On the CPU this stage takes about 10 hours: about 0.5 billion"
    )


def test_a_dry_run_warns_of_rows_that_make_few_steps(
    client: TestClient, make_dataset: Callable[..., Dataset]
) -> None:
    make_dataset("few", row_count=3)
    sft = SFT | {"dataset": "few"}
    meant = [sft | {"name": "stated", "max_steps": 1}, sft | {"name": "enough", "epochs": 60}]
    planned = client.post("/api/v1/jobs/dry-run", json=spec(sft, *meant)).json()["stages"]
    warnings = [stage["warnings"] for stage in planned]
    assert warnings[0][0].startswith("The stage takes 1 optimizer step (3 rows, 16 a step, epochs 1)")
    assert warnings[1:] == [[], []]


@pytest.mark.parametrize("name", JOB_EXAMPLES)
def test_every_example_of_the_documentation_is_a_valid_spec(name: str) -> None:
    spec = JobCreate.model_validate(JOB_EXAMPLES[name]["value"])
    assert [stage.stage for stage in spec.stages] == [
        s["stage"] for s in JOB_EXAMPLES[name]["value"]["stages"]
    ]


def test_the_plan_of_a_mixture_has_the_rows_of_each_dataset(
    client: TestClient, make_dataset: Callable[..., Dataset]
) -> None:
    large, small = make_dataset("large", row_count=100), make_dataset("small", row_count=10)
    parts = [{"dataset": "large", "weight": 5}, {"dataset": small.id, "weight": 1}]
    stage = {"stage": "sft", "base": "org/model", "dataset": parts, "batch_size": 10}
    (planned,) = client.post("/api/v1/jobs/dry-run", json=spec(stage)).json()["stages"]
    found = {part["id"]: part["epoch_rows"] for part in planned["mixture"]}
    assert found == {large.id: 50, small.id: 10}
    assert (planned["dataset"], planned["estimated_steps"]) == (None, 6)
    repeated = stage | {"dataset": [{"dataset": "large"}, {"dataset": "small", "rows": 25}]}
    (planned,) = client.post("/api/v1/jobs/dry-run", json=spec(repeated)).json()["stages"]
    assert planned["mixture"][1]["repeats"] == "each of 10 rows 2 times, and 5 of them once more"
    twice = client.post("/api/v1/jobs", json=spec(stage | {"dataset": [*parts, {"dataset": "small"}]}))
    assert (
        twice.status_code == 422 and "is listed twice: give it one entry" in twice.json()["error"]["message"]
    )
    missing = client.post("/api/v1/jobs", json=spec(stage | {"dataset": [{"dataset": "none"}]}))
    assert missing.json()["error"]["fields"][0]["field"] == "stages.0.dataset.0.dataset"


def test_a_dataset_of_a_mixture_is_in_use_and_shows_its_models(
    client: TestClient, make_dataset: Callable[..., Dataset], make_job: Callable[..., list[Run]]
) -> None:
    dataset = make_dataset("part")
    config = {"stage": "sft", "dataset": [{"dataset": dataset.id, "weight": 1.0}]}
    (run,) = make_job(RunStatus.running, config=config)
    with transaction() as session:
        model = Model(
            name="m", kind=ModelKind.adapter, base="b", run_id=run.id, artifact="m", sha256="0", size_bytes=1
        )
        session.add(model)
    assert client.get(f"/api/v1/datasets/{dataset.id}").json()["models"] == [model.id]
    listed = client.get("/api/v1/models", params={"dataset_id": dataset.id}).json()["items"]
    assert [each["id"] for each in listed] == [model.id]
    refused = client.delete(f"/api/v1/datasets/{dataset.id}")
    assert refused.status_code == 409 and refused.json()["error"]["used_by"] == [run.job_id]


def test_every_kind_of_stage_has_an_example() -> None:
    # A job with a batch is created together with the batch, and those with the others by a rescue.
    assert set(JOB_EXAMPLES) >= set(StageKind) - {StageKind.batch, StageKind.fetch, StageKind.record}


def test_pages_contain_every_job_once_newest_first(
    client: TestClient, make_job: Callable[..., list[Run]]
) -> None:
    created = [make_job(RunStatus.queued)[0].job_id for _ in range(7)]
    listed, after = [], None
    for _ in range(3):
        page = client.get("/api/v1/jobs", params={"limit": 3} | ({"after": after} if after else {})).json()
        listed += [job["id"] for job in page["items"]]
        after = page["next"]
    assert listed == created[::-1] and after is None


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        (["succeeded", "succeeded"], "succeeded"),
        (["succeeded", "running"], "running"),
        (["failed", "cancelled"], "failed"),
        (["succeeded", "queued"], "queued"),
        (["cancelling", "queued"], "cancelling"),
    ],
)
def test_a_job_has_the_status_of_its_first_run_that_has_not_succeeded(
    client: TestClient, make_job: Callable[..., list[Run]], statuses: list[str], status: str
) -> None:
    job_id = make_job(*map(RunStatus, statuses))[0].job_id
    assert client.get(f"/api/v1/jobs/{job_id}").json()["status"] == status
    for wanted in RunStatus:
        items = client.get("/api/v1/jobs", params={"status": wanted}).json()["items"]
        assert [job["status"] for job in items] == ([status] if wanted == status else [])


def test_filters_are_combined(client: TestClient, rows: Dataset) -> None:
    for name, labels in [("a", {"team": "x", "env": "y"}), ("a", {"team": "x"}), ("b", {"team": "z"})]:
        client.post("/api/v1/jobs", json=spec(name=name, labels=labels))

    def count(**params: Any) -> int:
        return len(client.get("/api/v1/jobs", params=params).json()["items"])

    assert [count(name="a"), count(label="team:x"), count(label="team:none")] == [2, 2, 0]
    assert count(label=["team:x", "env:y"], name="a", status="queued") == 1
    assert client.get("/api/v1/jobs", params={"label": "team"}).status_code == 422


def test_a_queued_run_shows_what_it_waits_for(
    client: TestClient, rows: Dataset, make_worker: Callable[..., Worker], make_job: Callable[..., list[Run]]
) -> None:
    path = f"/api/v1/jobs/{client.post('/api/v1/jobs', json=spec(SFT, EVALUATE)).json()['id']}"

    def waits() -> list[str | None]:
        return [run["waiting_for"] for run in client.get(path).json()["runs"]]

    first, second = waits()
    assert first == "No live worker serves queue cpu. Start one: python -m workers --queue cpu"
    assert second == "Waits for the stage 'sft', which is queued."
    worker = make_worker()
    assert waits()[0] is None
    make_job(RunStatus.running, worker_id=worker.id)
    assert waits()[0] == "This run is the next one; the only worker on queue cpu is busy."
    make_job(RunStatus.queued, priority=5)
    assert waits()[0] == "1 run is ahead of this one; the only worker on queue cpu is busy."


def test_a_queued_run_waits_for_gpus_that_the_workers_of_a_host_share(
    client: TestClient, rows: Dataset, make_worker: Callable[..., Worker], make_job: Callable[..., list[Run]]
) -> None:
    gpus = [{"name": "H200", "uuid": f"GPU-{n}", "memory_bytes": 1} for n in range(4)]
    host = {"queues": [Queue.cuda], "slots": {Queue.cuda: 4}, "hardware": {"gpus": gpus}}
    first, _ = make_worker(**host), make_worker(**host)
    stage = SFT | {"queue": "cuda", "devices": 2, "batch_size": 16, "micro_batch_size": 1}

    def waits(**changes: Any) -> str | None:
        body = spec(stage | changes)
        reason: str | None = client.post("/api/v1/jobs", json=body).json()["runs"][0]["waiting_for"]
        return reason

    assert waits() is None
    assert waits(devices=8) == "No live worker of queue cuda has 8 GPUs; the most is 4."
    make_job(RunStatus.running, worker_id=first.id, queue=Queue.cuda, device_count=3)
    reason = waits() or ""
    assert reason.endswith("it needs 2 GPUs, and no worker on queue cuda has more than 1 free.")
    make_job(RunStatus.running, worker_id=first.id, queue=Queue.cuda)
    assert (waits() or "").endswith("all 2 workers on queue cuda are busy.")


def test_a_404_names_the_unknown_job(client: TestClient) -> None:
    response = client.get("/api/v1/jobs/job_none")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "job_not_found")
    assert "job_none" in response.json()["error"]["message"]


def test_a_limit_above_the_service_s_own_is_refused_and_a_lower_one_is_kept(
    client: TestClient, rows: Dataset, settings: Settings
) -> None:
    settings.stage_limits = {StageKind.sft: StageLimits(max_seconds=100, max_memory_bytes=None)}
    errors = list_errors(client, spec(SFT | {"limits": {"max_seconds": 101}}))
    assert "limit of 100.0" in errors["stages.0.limits.max_seconds"]
    assert "TUNESMITH_STAGE_LIMITS" in errors["stages.0.limits.max_seconds"]
    lower = {"max_seconds": 99, "max_memory_bytes": 1 << 40}
    job = client.post("/api/v1/jobs", json=spec(SFT | {"limits": lower})).json()
    assert job["runs"][0]["config"]["limits"] == lower | {"max_disk_bytes": None}


def test_a_batch_that_the_devices_cannot_share_is_refused(client: TestClient, rows: Dataset) -> None:
    body = spec(SFT | {"devices": 8, "micro_batch_size": 8})
    assert any("times devices 8" in message for message in list_errors(client, body).values())
    assert client.post("/api/v1/jobs/dry-run", json=body).status_code == 422
    planned = client.post("/api/v1/jobs/dry-run", json=spec(SFT | {"devices": 8})).json()
    assert planned["stages"][0]["config"]["micro_batch_size"] == 2


@pytest.mark.parametrize("stage", [{}, {"stage": "preflight"}], ids=["trained", "probed"])
def test_only_kernels_that_the_operator_allows_are_run(
    client: TestClient, rows: Dataset, settings: Settings, tmp_path: Path, stage: dict[str, Any]
) -> None:
    def post(folder: Path) -> Any:
        config = SFT | {"kernels": {"folder": str(folder)}}
        return client.post("/api/v1/jobs", json=spec({**stage, "target": config} if stage else config))

    allowed = tmp_path / "kernels"
    (allowed / "fast").mkdir(parents=True)
    (allowed / "link").symlink_to(tmp_path)
    refused = post(allowed / "fast")
    assert refused.status_code == 422 and "allowed: none" in refused.text
    settings.kernel_roots.append(allowed)
    assert post(allowed / "fast").status_code == 201
    for outside in (allowed / "link", allowed / ".." / "other", allowed, Path("fast")):
        assert "TUNESMITH_KERNEL_ROOTS" in post(outside).text


def test_a_repeated_preflight_is_one_job_and_other_options_need_another_key(
    client: TestClient, rows: Dataset
) -> None:
    def send(steps: int) -> Any:
        headers = {"Idempotency-Key": "once"}
        path = f"/api/v1/jobs/preflight?probe_steps={steps}"
        return client.post(path, json=spec(SFT, EVALUATE), headers=headers)

    first, second = send(5).json(), send(5).json()
    assert first["job"]["id"] == second["job"]["id"] and first["skipped"] == second["skipped"]
    assert (send(6).status_code, send(6).json()["error"]["code"]) == (409, "idempotency_key_reused")
