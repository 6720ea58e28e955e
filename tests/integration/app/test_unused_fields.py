"""A field that would have no effect is refused when a job or a deployment is posted, and named."""

from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from trainers.data.formats import RowFormat

SFT: dict[str, Any] = {"stage": "sft", "base": "org/model", "dataset": "rows"}
DPO: dict[str, Any] = {"stage": "dpo", "base": "org/model", "dataset": "pairs"}
GRPO = {"stage": "grpo", "base": "org/model", "dataset": "rows", "rewards": [{"kind": "correctness"}]}
EVALUATE = {"stage": "evaluate", "model": "org/model", "dataset": "rows", "metrics": [{"metric": "bleu"}]}
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def plan(client: TestClient, stage: dict[str, Any]) -> Any:
    return client.post("/api/v1/jobs/dry-run", json={"name": "one", "stages": [stage]}).json()


@pytest.mark.parametrize(
    ("stage", "field", "needed"),
    [
        (
            GRPO | {"vllm_memory_share": 0.5},
            "vllm_memory_share",
            "generation is transformers; set that to vllm",
        ),
        (GRPO | {"vllm_memory_share": 0.5, "generation": "hf"}, "vllm_memory_share", "generation is hf"),
        (
            GRPO | {"vllm_memory_share": 0.5, "generation": "vllm", "queue": "cpu"},
            "vllm_memory_share",
            "vLLM does not read it on queue cpu; set queue to cuda",
        ),
        (
            EVALUATE | {"engine": "vllm", "queue": "cuda", "options": {"cpu_cache_gib": 4}},
            "options.cpu_cache_gib",
            "vLLM does not read it on queue cuda; set queue to cpu",
        ),
        (
            SFT | {"queue": "mlx", "tuning": {"quantization": "4bit", "double_quantization": False}},
            "tuning.double_quantization",
            "MLX does not have it",
        ),
        (SFT | {"tuning": {"double_quantization": False}}, "tuning.double_quantization", "to nf4"),
        (SFT | {"parallelism": "fsdp2"}, "parallelism", "set devices, or nodes, to 2 or more"),
        (SFT | {"validate_every_steps": 5}, "validate_every_steps", "set validation_dataset"),
        (SFT | {"early_stopping_min_improvement": 0.1}, "early_stopping_min_improvement", "patience"),
        (SFT | {"sweep_max_runs": 3}, "sweep_max_runs", "set sweep"),
        (DPO | {"losses": {"sft": 1}, "beta": 0.5}, "beta", "the loss sft has no reference"),
        (
            EVALUATE | {"options": {"memory_share": 0.5}},
            "options.memory_share",
            "set engine to vllm or sglang",
        ),
    ],
)
def test_a_field_without_effect_is_refused(
    stage: dict[str, Any], field: str, needed: str, client: TestClient, make_dataset: Callable[..., Any]
) -> None:
    make_dataset("rows")
    make_dataset("pairs", format=RowFormat.preference)
    (fault,) = plan(client, stage)["error"]["fields"]
    assert fault["field"] == f"stages.0.{field}"
    assert f"{field} " in fault["message"] and "has no effect" in fault["message"]
    assert needed in fault["message"] and f"or omit {field}" in fault["message"]


def test_a_stage_may_override_the_field_on_which_one_of_its_preset_depends(
    client: TestClient, make_dataset: Callable[..., Any]
) -> None:
    make_dataset("rows")
    stage = GRPO | {"preset": "gpus-8x80gb-lora", "generation": "transformers"}
    assert "error" not in plan(client, stage)
    (fault,) = plan(client, stage | {"vllm_memory_share": 0.6})["error"]["fields"]
    assert fault["field"] == "stages.0.vllm_memory_share"


@pytest.mark.parametrize("queue", ["cpu", "mlx", "cuda"])
@pytest.mark.parametrize("tuning", [{"method": "full"}, {"quantization": "4bit"}, {}])
def test_a_stage_with_defaults_has_no_unused_field(
    queue: str, tuning: dict[str, str], client: TestClient, make_dataset: Callable[..., Any]
) -> None:
    make_dataset("rows")
    assert "error" not in plan(client, SFT | {"queue": queue, "tuning": tuning})


def test_a_deployment_refuses_an_option_that_its_engine_does_not_read(client: TestClient) -> None:
    body = {"name": "one", "model": "org/model", "engine": "hf", "options": {"prefix_caching": False}}
    error = client.post("/api/v1/deployments", json=body).json()["error"]
    assert error["fields"][0]["field"] == "options.prefix_caching"
    assert "hf does not have it; set engine to vllm or sglang" in error["message"]
