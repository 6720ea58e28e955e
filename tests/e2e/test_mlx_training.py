"""Models and checkpoints that MLX has trained are used through the API as those of torch are.

Goal: evaluate, deploy, merge, export, train further and download, for each form of the base. Method: a
service with one worker on MLX's CPU device; a base as it is, rounded to 4 bits, and quantized by mlx-lm.

    pytest -m slow tests/e2e/test_mlx_training.py
"""

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.platform import LONG, Platform, sft_stage, wait_until

mlx_lm = pytest.importorskip("mlx_lm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
BUSY_SECONDS = 900
FOUR_BITS = {"method": "lora", "rank": 4, "alpha": 8, "quantization": "4bit"}
ROUNDED = FOUR_BITS | {"publish_dequantized_base": True}
BASES: dict[str, dict[str, Any]] = {
    "whole": {},
    "4bit": {"tuning": FOUR_BITS},
    "rounded": {"tuning": ROUNDED},
    "by-mlx-lm": {"tuning": ROUNDED, "base": "starter-4bit"},
}


@pytest.fixture(scope="module")
def platform(shared: Platform, starter: Path) -> Platform:
    mlx_lm.convert(str(starter), str(shared.folder / "models" / "starter-4bit"), quantize=True)
    return shared


def mlx_stage(platform: Platform, **options: Any) -> dict[str, Any]:
    base = str(platform.folder / "models" / options.pop("base", "starter"))
    settings = {"max_steps": 4, "save_every_steps": 2, "keep_checkpoints": 2, "learning_rate": 5e-3}
    return sft_stage(**{"backend": "mlx", "base": base, "preflight": "off", **settings, **options})


def evaluate(model: Any, engine: str) -> dict[str, Any]:
    rows = {"dataset": "test", "max_rows": 2, "max_new_tokens": 8}
    return {
        "stage": "evaluate",
        "name": f"by-{engine}",
        "model": model,
        "engine": engine,
        "needs": [],
        **rows,
    }


@pytest.mark.parametrize("name", list(BASES))
def test_a_model_and_its_checkpoints_are_used_as_those_of_torch(platform: Platform, name: str) -> None:
    trained = platform.wait_until_finished(platform.submit(mlx_stage(platform, **BASES[name])), BUSY_SECONDS)
    (run,) = trained["runs"]
    assert run["status"] == "succeeded", run["error"]
    model, checkpoint = run["model_id"], {"run": run["id"], "step": 4}
    uses = [evaluate(checkpoint, "hf"), evaluate(checkpoint, "mlx"), evaluate(model, "hf")]
    uses[2]["name"] = "published"
    uses += [{"stage": "merge", "model": model, "needs": []}]
    uses += [{"stage": "export", "model": model, "formats": ["mlx"], "needs": []}]
    tuning = {"tuning": {"rank": 4, "alpha": 8}, "max_steps": 1}
    uses += [sft_stage(name="further", base=model, backend="torch", preflight="off", needs=[], **tuning)]
    used = platform.wait_until_finished(platform.submit(*uses), BUSY_SECONDS)
    assert {use["name"]: use["error"] for use in used["runs"]} == {use["name"]: None for use in used["runs"]}
    for engine in ("hf", "mlx"):
        options = {"engine": engine, "parity": "on", "options": {"max_model_len": 128}}
        deployment = platform.deploy(f"{name}-{engine}", model, **options)
        report = platform.get(f"/deployments/{deployment}")["parity"]
        assert (report["passed"], report["quantization"] is not None) == (True, name != "whole")
        platform.post(f"/deployments/{deployment}/stop")
    archive = platform.client.get(f"/api/v1/models/{model}/download").content
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = {Path(name).name for name in tar.getnames()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= files
    assert ("quantized_base.json" in files) == (name != "whole")


def test_a_checkpoint_whose_base_is_not_published_yet_is_refused_when_it_is_posted(
    platform: Platform,
) -> None:
    job = platform.submit(mlx_stage(platform, **LONG | BASES["by-mlx-lm"]))
    run = platform.run(job)["id"]
    wait_until(lambda: bool(platform.get(f"/runs/{run}/checkpoints")["items"]), 240, "no checkpoint")
    body = {"name": "early", "stages": [evaluate({"run": run}, "hf")]}
    response = platform.client.post("/api/v1/jobs", json=body)
    platform.post(f"/jobs/{job}/cancel")
    assert response.status_code == 422
    assert "adapters of the base that the run publishes when it succeeds" in response.text
    assert "after the run has succeeded" in response.text
