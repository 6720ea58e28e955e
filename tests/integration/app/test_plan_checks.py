"""Goal: what the API can read of a job's later stages is checked at POST, not after training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.settings import Settings
from app.storage.database import transaction
from app.tables import Dataset, Model, ModelKind, Worker
from trainers.configs import EngineKind, GrpoConfig, Queue, parse_stage
from workers.hosts.worker import register_worker
from workers.inputs.engine_program import place_engine_program

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
Rows = list[dict[str, str]]
SFT = {"stage": "sft", "base": "org/base", "dataset": "rows", "queue": "cpu"}
SUMS = [{"prompt": f"{n} + 1?", "completion": f"#### {n + 1}"} for n in range(20)]
SENTENCES = [{"prompt": "나는 사과를 보았다.", "completion": "I saw an apple."}]


@pytest.fixture
def post(client: TestClient) -> Callable[..., dict[str, Any]]:
    """Return a function that posts the dry run of a job; its rows are those of the first argument."""

    def dry_run(rows: Rows, *stages: dict[str, Any]) -> dict[str, Any]:
        content = "".join(json.dumps(row) + "\n" for row in rows)
        files = {"file": ("rows.jsonl", content)}
        assert client.post("/api/v1/datasets", data={"name": "rows"}, files=files).status_code == 201
        body = {"name": "job", "stages": list(stages)}
        plan = client.post("/api/v1/jobs/dry-run", json=body)
        assert client.post("/api/v1/jobs", json=body).status_code in (plan.status_code, 201)
        result: dict[str, Any] = plan.json()
        return result

    return dry_run


def message(result: dict[str, Any], field: str) -> str:
    return str(next(one["message"] for one in result["error"]["fields"] if one["field"] == field))


@pytest.mark.parametrize("max_rows", [None, 5])
def test_rows_that_the_metric_cannot_score_are_refused(
    post: Callable[..., Any], max_rows: int | None
) -> None:
    evaluate = {"stage": "evaluate", "model": {"stage": "sft"}, "dataset": "rows", "max_rows": max_rows}
    result = post([*SUMS[:3], *SENTENCES, *SUMS[3:]], SFT, evaluate)
    assert "cannot be scored. Row 4 of the dataset has no final answer" in message(result, "stages.1.dataset")
    assert "The metrics are " in result["error"]["hint"]
    assert "maths_exact_match" in result["error"]["hint"]


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"engines": {"model": {"url": "http://10.0.0.1", "model": "m"}}}, "engines"),
        ({"origins": {"model": {"name": "m", "training_data": {"x": "/etc/passwd"}}}}, "origins"),
        ({"pending": ["model"]}, "pending"),
        ({"baseline": {"run": "run_a", "step": 3}}, "baseline.run"),
        ({"others": {"live": {"deployment": "live"}}}, "others.live.deployment"),
        ({"others": {"large": {"endpoint": "openai", "model": "m"}}}, "others.large.endpoint"),
        ({"others": {"next": {"stage": "dpo"}}}, "others.next"),
    ],
)
def test_a_model_that_cannot_be_evaluated_is_refused_at_its_field(
    post: Callable[..., Any], values: dict[str, Any], field: str
) -> None:
    evaluate = {"stage": "evaluate", "model": {"stage": "sft"}, "dataset": "rows", **values}
    assert message(post(SUMS, SFT, evaluate), f"stages.1.{field}")


def test_only_the_start_of_a_large_dataset_is_read(
    post: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = {"stage": "evaluate", "model": {"stage": "sft"}, "dataset": "rows"}
    monkeypatch.setattr("app.jobs.row_checks.MAX_BYTES", 100)
    result = post([*SUMS[:3], *SENTENCES, *SUMS[3:]], SFT, evaluate)
    found = message(result, "stages.1.dataset")
    assert "MiB were read). Row 4 of the dataset has no final answer" in found
    # The start ends in the line before the one that cannot be scored, or in the first line.
    for start in (130, 8):
        monkeypatch.setattr("app.jobs.row_checks.MAX_START_BYTES", start)
        assert "stages" in post([*SUMS[:3], *SENTENCES, *SUMS[:start]], SFT, evaluate)


def test_rows_after_those_that_are_scored_may_be_anything(post: Callable[..., Any]) -> None:
    evaluate = {"stage": "evaluate", "model": {"stage": "sft"}, "dataset": "rows", "max_rows": 3}
    assert "stages" in post([*SUMS[:3], *SENTENCES], SFT, evaluate)


@pytest.mark.parametrize(
    "tuned", [SFT | {"tuning": {"method": "full"}}, {"stage": "merge", "model": "model_a"}]
)
def test_a_model_without_an_adapter_is_not_merged(
    client: TestClient, make_dataset: Callable[..., Dataset], tuned: dict[str, Any]
) -> None:
    make_dataset("rows")
    merge = {"stage": "merge", "name": "again", "model": {"stage": tuned["stage"]}}
    body = {"name": "job", "stages": [tuned, merge]}
    refused = client.post("/api/v1/jobs/dry-run", json=body).json()
    assert "no adapter to merge" in message(refused, "stages.1.model")
    body["stages"] = [tuned, merge | {"stage": "export", "formats": ["gguf_adapter"]}]
    refused = client.post("/api/v1/jobs/dry-run", json=body).json()
    assert "no adapter for the format gguf_adapter" in message(refused, "stages.1.formats")


def test_whole_weights_of_the_registry_are_not_merged(client: TestClient) -> None:
    fields: dict[str, Any] = {
        "name": "m",
        "base": "org/base",
        "artifact": "a",
        "sha256": "0",
        "size_bytes": 1,
    }
    with transaction() as session:
        model = Model(kind=ModelKind.base, template_sha256="0", **fields)
        session.add(model)
    body = {"name": "job", "stages": [{"stage": "merge", "model": model.id}]}
    assert "no adapter" in message(client.post("/api/v1/jobs", json=body).json(), "stages.0.model")


def test_an_adapter_is_not_deployed_without_a_slot_for_it(
    client: TestClient, post: Callable[..., Any]
) -> None:
    with transaction() as session:
        adapter = Model(name="m", kind=ModelKind.adapter, base="b", artifact="a", sha256="0", size_bytes=1)
        session.add(adapter)
    choice = {"engine": "vllm", "options": {"max_adapters": 0}}
    created = client.post("/api/v1/deployments", json=choice | {"name": "m", "model": adapter.id})
    assert "is an adapter, and options.max_adapters is 0" in created.json()["error"]["message"]
    deploy = choice | {"stage": "deploy", "deployment": "m", "model": {"stage": "sft"}}
    assert "options.max_adapters is 0" in message(post(SUMS, SFT, deploy), "stages.1.model")


def test_layers_that_the_engine_hf_cannot_batch_are_refused(client: TestClient, settings: Settings) -> None:
    base = settings.model_roots[0] / "hybrid"
    base.mkdir(parents=True)
    text = {"model_type": "qwen3_5_text", "layer_types": ["linear_attention", "full_attention"]}
    (base / "config.json").write_text(json.dumps({"model_type": "qwen3_5", "text_config": text}))
    with transaction() as session:
        adapter = Model(
            name="m", kind=ModelKind.adapter, base=str(base), artifact="a", sha256="0", size_bytes=1
        )
        session.add(adapter)
    for model in (str(base), adapter.id):
        body = {"name": "m", "model": model, "engine": "hf"}
        refused = client.post("/api/v1/deployments", json=body).json()["error"]
        assert "has linear_attention layers, which the engine hf cannot batch" in refused["message"]
        assert refused["hint"] == "Set engine to vllm or sglang."
        accepted = client.post("/api/v1/deployments", json=body | {"engine": "vllm"})
        assert accepted.status_code == 201, accepted.text


def test_more_processes_than_cpus_are_refused_where_a_worker_is_alive(
    client: TestClient, make_dataset: Callable[..., Dataset], make_worker: Callable[..., Worker]
) -> None:
    make_dataset("rows")
    body = {"name": "job", "stages": [SFT | {"devices": 8}]}
    assert client.post("/api/v1/jobs/dry-run", json=body).status_code == 200
    make_worker(hardware={"cpus": 2})
    refused = client.post("/api/v1/jobs/dry-run", json=body).json()
    assert message(refused, "stages.0.devices").startswith("8 processes are more than the 2 CPUs")


def test_a_deployment_waits_for_a_worker_with_its_engine(
    client: TestClient, make_worker: Callable[..., Worker]
) -> None:
    make_worker(name="plain")
    deploy = {"stage": "deploy", "model": "org/base", "deployment": "name", "engine": "vllm", "queue": "cpu"}
    body = {"name": "job", "stages": [deploy]}
    (stage,) = client.post("/api/v1/jobs/dry-run", json=body).json()["stages"]
    assert stage["waiting_for"].startswith("No live worker of queue cpu has the capability vllm: plain lack")
    assert "TUNESMITH_ENGINE_COMMANDS" in stage["waiting_for"]
    make_worker(name="fast", capabilities=["vllm"])
    (stage,) = client.post("/api/v1/jobs/dry-run", json=body).json()["stages"]
    assert (stage["waiting_for"], stage["workers"]) == (None, ["fast"])


def test_grpo_with_vllm_waits_for_a_worker_with_vllm_which_alone_names_its_program(
    client: TestClient,
    make_worker: Callable[..., Worker],
    make_dataset: Callable[..., Dataset],
    settings: Settings,
) -> None:
    make_dataset("rows")
    make_worker(name="plain")
    grpo = {"stage": "grpo", "base": "org/base", "dataset": "rows", "rewards": [{"kind": "correctness"}]}
    stage = grpo | {"generation": "vllm", "queue": "cpu"}
    (planned,) = client.post("/api/v1/jobs/dry-run", json={"name": "job", "stages": [stage]}).json()["stages"]
    assert planned["waiting_for"].startswith("No live worker of queue cpu has the capability vllm: plain")
    stage |= {"engine_program": ["/bin/sh", "-c", "evil"]}
    refused = client.post("/api/v1/jobs/dry-run", json={"name": "job", "stages": [stage]}).json()
    assert message(refused, "stages.0.engine_program") == "Omit this field: the worker sets it."
    settings.engine_commands = {EngineKind.vllm: ["/opt/vllm", "serve"]}
    for generation, expected in (("vllm", ["/opt/vllm", "serve"]), ("transformers", None)):
        placed = place_engine_program(parse_stage(grpo | {"generation": generation}), settings)
        assert isinstance(placed, GrpoConfig)
        assert placed.engine_program == expected


def test_a_worker_announces_the_engines_whose_programs_exist(settings: Settings, tmp_path: Path) -> None:
    program = tmp_path / "vllm"
    settings.engine_commands = {EngineKind.vllm: [str(program), "serve"]}
    assert "vllm" not in register_worker(settings, [Queue.cpu], "before").capabilities
    program.touch(0o755)
    assert "vllm" in register_worker(settings, [Queue.cpu], "after").capabilities
