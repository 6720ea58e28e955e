"""The library that trains a stage: chosen by the queue or the field, shown, and refused where MLX cannot."""

from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.tables import Dataset, Worker
from trainers.configs import Queue

SFT: dict[str, Any] = {"stage": "sft", "base": "org/model", "dataset": "rows"}
LARGE = SFT | {"base": "org/model-7B"}
GRPO = {"stage": "grpo", "base": "org/model", "dataset": "rows", "rewards": [{"kind": "correctness"}]}


def plan(client: TestClient, *stages: dict[str, Any], **job: Any) -> Any:
    return client.post("/api/v1/jobs/dry-run", json={"name": "one", "stages": list(stages), **job})


@pytest.fixture
def rows(make_dataset: Callable[..., Dataset]) -> Dataset:
    return make_dataset("rows", row_count=100)


@pytest.fixture
def mac(make_worker: Callable[..., Worker]) -> Worker:
    hardware = {"memory_bytes": 16 << 30, "cpus": 8, "gpus": [], "unused": None}
    queues = [Queue.mlx, Queue.cpu]
    return make_worker(name="mac", queues=queues, capabilities=["mlx"], hardware=hardware)


def test_a_spec_without_a_backend_goes_to_the_mac_that_is_alive(
    client: TestClient, rows: Dataset, mac: Worker
) -> None:
    (stage,) = plan(client, SFT).json()["stages"]
    assert (stage["queue"], stage["workers"]) == ("mlx", ["mac"])
    assert stage["queue_reason"].endswith("has a GPU. The next best is an Apple chip.")
    assert stage["backend"] == {"backend": "mlx", "reason": "The queue mlx is that of Apple chips."}
    # Not measured on an Apple GPU.
    assert stage["resume_guarantee"]["exactness"] == "approximate"


def test_mlx_on_a_cpu_waits_for_a_worker_that_has_it(
    client: TestClient, rows: Dataset, make_worker: Callable[..., Worker]
) -> None:
    make_worker(name="plain")
    (stage,) = plan(client, SFT | {"backend": "mlx"}).json()["stages"]
    assert (stage["queue"], stage["backend"]["backend"], stage["workers"]) == ("cpu", "mlx", [])
    assert "has the capability mlx: plain lack" in stage["waiting_for"]
    make_worker(name="with-mlx", capabilities=["mlx"])
    job = client.post("/api/v1/jobs", json={"name": "one", "stages": [SFT | {"backend": "mlx"}]}).json()
    run = client.get(f"/api/v1/runs/{job['runs'][0]['id']}").json()
    assert run["backend"] == {"backend": "mlx", "reason": "The stage, or one of its presets, names it."}


@pytest.mark.parametrize(
    ("stage", "field", "message"),
    [
        (GRPO, "stages.0.queue", "the stage grpo has a program for torch alone; use queue cuda, or cpu"),
        (SFT | {"devices": 2}, "stages.0.backend", "devices is 2, and a Mac has one"),
        (SFT | {"packing": True}, "stages.0.backend", "packing needs attention that separates the rows"),
        (SFT | {"neftune_alpha": 5}, "stages.0.backend", "neftune_alpha is a part of the torch program"),
        (SFT | {"attention": "sdpa"}, "stages.0.backend", "attention sdpa is an implementation of torch"),
        (SFT | {"tuning": {"quantization": "nf4"}}, "stages.0.backend", "set it to 4bit, which each backend"),
        (LARGE | {"tuning": {"method": "full"}}, "stages.0.tuning", "needs at least 104 GiB with MLX"),
        (LARGE, "stages.0.tuning", "the GPU of the largest live Mac may use 11 GiB. Train an adapter with"),
    ],
)
def test_what_a_mac_cannot_train_is_refused_with_what_is_needed(
    stage: dict[str, Any], field: str, message: str, client: TestClient, rows: Dataset, mac: Worker
) -> None:
    response = plan(client, stage, queue="mlx")
    assert response.status_code == 422
    (fault,) = response.json()["error"]["fields"]
    assert fault["field"] == field
    assert message in fault["message"]


def test_an_adapter_on_a_4_bit_base_fits_where_its_base_does_not(
    client: TestClient, rows: Dataset, mac: Worker
) -> None:
    stage = LARGE | {"tuning": {"quantization": "4bit"}}
    assert plan(client, stage, queue="mlx").status_code == 200


@pytest.mark.parametrize("stage", [SFT, GRPO], ids=["sft", "grpo"])
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"precision": "bf16"}, "precision bf16 is not computed by a CPU; use auto or fp32, or queue cuda"),
        ({"attention": "flash_attention_3"}, "attention flash_attention_3 has no kernel for a CPU"),
        ({"optimizer": "paged_adamw_8bit"}, "use adamw_8bit, or queue cuda"),
    ],
)
def test_a_setting_that_a_cpu_does_not_have_is_refused_at_its_field(
    stage: dict[str, Any], setting: dict[str, str], message: str, client: TestClient, rows: Dataset
) -> None:
    for path in ("/api/v1/jobs/dry-run", "/api/v1/jobs"):
        response = client.post(path, json={"name": "one", "queue": "cpu", "stages": [stage | setting]})
        (fault,) = response.json()["error"]["fields"]
        assert fault["field"] == f"stages.0.{next(iter(setting))}"
        assert fault["message"].startswith("On queue cpu, ") and message in fault["message"]
