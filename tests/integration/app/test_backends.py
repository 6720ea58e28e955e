"""The library that trains a stage: chosen by the queue or the field, shown, and refused where MLX cannot."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.settings import Settings
from app.tables import Dataset, RunStatus, Worker
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
        ({"kernels": "liger"}, "omit kernels, or use queue cuda"),
    ],
)
def test_a_setting_that_a_cpu_does_not_have_is_refused_at_its_field(
    stage: dict[str, Any], setting: dict[str, str], message: str, client: TestClient, rows: Dataset
) -> None:
    of_job = {"name": "one", "queue": "cpu", "stages": [stage | setting]}
    of_stage = {"name": "one", "stages": [stage | setting | {"queue": "cpu"}]}
    for path, body in (("/api/v1/jobs/dry-run", of_job), ("/api/v1/jobs", of_stage)):
        response = client.post(path, json=body)
        (fault,) = response.json()["error"]["fields"]
        assert fault["field"] == f"stages.0.{next(iter(setting))}"
        assert fault["message"].startswith("On queue cpu, ") and message in fault["message"]


NF4 = "Use preset gpu-24gb-nf4, which stores the base in 4 bits, a smaller base, or a larger GPU."


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (SFT | {"base": "org/model-8B", "preset": "gpu-24gb"}, NF4),
        (GRPO | {"base": "org/model-8B", "preset": "gpu-24gb"}, NF4),
        (SFT | {"base": "org/model-8B", "preset": "gpu-24gb-nf4"}, None),
        (SFT | {"base": "org/model-4B", "preset": "gpu-24gb"}, None),
        (SFT | {"base": "org/model-8B", "preset": "gpu-80gb"}, None),
        (SFT | {"base": "org/model", "preset": "gpu-24gb"}, None),
        (SFT | {"base": "org/model-8B", "queue": "cuda", "tuning": {"method": "full"}}, None),
    ],
)
def test_a_base_that_exceeds_the_gpu_of_its_preset_is_a_warning_with_the_estimate(
    stage: dict[str, Any], expected: str | None, client: TestClient, rows: Dataset
) -> None:
    warnings = [one for one in plan(client, stage).json()["stages"][0]["warnings"] if " GB of a GPU" in one]
    assert [warning.endswith(expected or "") for warning in warnings] == [True] * (expected is not None)
    assert all("Of a GPU with 24 GB, 22 GB are usable" in warning for warning in warnings)


def test_all_experts_of_a_base_count_for_its_memory(
    client: TestClient, rows: Dataset, settings: Settings
) -> None:
    base = settings.model_roots[0] / "mixture"
    base.mkdir(parents=True)
    sizes = {"hidden_size": 2048, "num_hidden_layers": 48, "moe_intermediate_size": 768, "vocab_size": 151936}
    (base / "config.json").write_text(json.dumps(sizes | {"num_experts": 128, "num_experts_per_tok": 8}))
    stage = SFT | {"base": str(base), "preset": "gpu-24gb-nf4"}
    warnings = plan(client, stage).json()["stages"][0]["warnings"]
    assert any("about 30 billion parameters" in warning and " GB of a GPU" in warning for warning in warnings)


def test_a_live_gpu_counts_and_not_the_one_of_the_preset(
    client: TestClient, rows: Dataset, make_worker: Callable[..., Worker]
) -> None:
    gpu = {"uuid": "GPU-1", "name": "H100", "memory_bytes": 80 << 30}
    make_worker(queues=[Queue.cuda], hardware={"memory_bytes": 1 << 40, "gpus": [gpu]}, slots={"cuda": 1})
    eight = SFT | {"base": "org/model-8B", "preset": "gpu-24gb"}
    assert "GB of a GPU" not in str(plan(client, eight).json()["stages"][0]["warnings"])
    full = SFT | {"base": "org/model-8B", "queue": "cuda", "tuning": {"method": "full"}}
    assert "Train an adapter (tuning.method lora)" in str(plan(client, full).json()["stages"][0]["warnings"])


@pytest.mark.parametrize(("is_busy", "expected"), [(False, 30), (True, 80)])
def test_preflight_leaves_out_what_other_programs_use_of_a_gpu(
    is_busy: bool,
    expected: int,
    client: TestClient,
    rows: Dataset,
    make_worker: Callable[..., Worker],
    make_job: Callable[..., Any],
) -> None:
    used = [0, 50, 0, 0]
    gpus = [{"uuid": f"GPU-{i}", "memory_bytes": 80 << 30, "used_bytes": n << 30} for i, n in enumerate(used)]
    hardware = {"memory_bytes": 1 << 40, "gpus": gpus}
    worker = make_worker(queues=[Queue.cuda], hardware=hardware, slots={"cuda": 4})
    if is_busy:
        make_job(RunStatus.running, worker_id=worker.id, queue=Queue.cuda)
    body = {"name": "one", "stages": [SFT | {"queue": "cuda", "devices": 4}]}
    job = client.post("/api/v1/jobs/preflight", json=body).json()["job"]
    (host,) = job["runs"][0]["config"]["hosts"]
    assert (host["devices"], host["memory_bytes"]) == (4, expected << 30)


@pytest.mark.parametrize(
    ("names", "is_refused"),
    [
        (["Tesla T4"], True),
        (["Tesla V100-SXM2-16GB", "NVIDIA GeForce RTX 2080 Ti"], True),
        (["Tesla T4", "NVIDIA A10"], False),
        (["NVIDIA L40S"], False),
        (["NVIDIA H100 80GB HBM3"], False),
        ([], False),
    ],
)
def test_bf16_is_refused_where_all_live_gpus_emulate_it(
    names: list[str],
    is_refused: bool,
    client: TestClient,
    rows: Dataset,
    make_worker: Callable[..., Worker],
) -> None:
    gpus = [{"uuid": f"GPU-{name}", "name": name, "memory_bytes": 80 << 30} for name in names]
    make_worker(queues=[Queue.cuda], hardware={"memory_bytes": 1 << 40, "gpus": gpus}, slots={"cuda": 1})
    answer = plan(client, SFT | {"queue": "cuda", "precision": "bf16"}).json()
    fields = [fault["field"] for fault in answer["error"]["fields"]] if "error" in answer else []
    assert fields == (["stages.0.precision"] if is_refused else [])
