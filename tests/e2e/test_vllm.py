"""The real vLLM behind the whole service: from `TUNESMITH_ENGINE_COMMANDS`, or on PATH."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import OpenAI

from serving.parity.compare import TOLERANCES
from tests.e2e.platform import ROOT, Platform, chat, list_children, sft_stage, wait_until

PROGRAM = json.loads(os.environ.get("TUNESMITH_ENGINE_COMMANDS", "{}")).get("vllm", ["vllm", "serve"])

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(shutil.which(PROGRAM[0]) is None, reason="vLLM is not installed"),
]


@pytest.fixture
def wide(embedded: Platform) -> Path:
    """Return a base among the service's models; the starter's heads are too small for vLLM on a CPU."""
    folder = embedded.folder / "models" / "tiny"
    program = ROOT / "tests" / "integration" / "serving" / "make_tiny.py"
    subprocess.run([sys.executable, program, folder, "32"], check=True, capture_output=True)
    return folder / "base"


def run_job(embedded: Platform, wide: Path, **options: Any) -> Any:
    """Run a job that trains an adapter and deploys it with the parity check, and return it."""
    stage: dict[str, Any] = {"stage": "deploy", "model": {"stage": "sft"}, "deployment": "tuned"}
    options |= {"max_model_len": 512, "cpu_cache_gib": 1}
    stage |= {"engine": "vllm", "options": options, "ready_timeout_seconds": 1200, "parity": "on"}
    return embedded.wait_until_finished(
        embedded.submit(sft_stage(base=str(wide), learning_rate=0.01), stage), 1500
    )


# Without a dtype, vLLM serves these weights in bfloat16.
@pytest.mark.parametrize(("options", "precision"), [({"dtype": "float32"}, "float32"), ({}, "bfloat16")])
def test_a_job_deploys_its_model_on_vllm_and_passes_the_parity_check(
    embedded: Platform, wide: Path, options: dict[str, str], precision: str
) -> None:
    worker = embedded.start_worker(TUNESMITH_ENGINE_COMMANDS=json.dumps({"vllm": PROGRAM}))
    job = run_job(embedded, wide, **options)
    assert job["status"] == "succeeded", job
    deployment = embedded.get(f"/deployments/{job['runs'][1]['result']['deployment_id']}")
    proof, tolerance = deployment["parity"], TOLERANCES[precision]
    assert (deployment["status"], proof["message"], proof["precision"]) == ("ready", "They agree.", precision)
    assert proof["mean_difference"] < tolerance.mean and proof["max_difference"] < tolerance.max
    assert abs(proof["adapter_scale"] - 1) < 0.05 < proof["adapter_effect"]
    print({name: proof[name] for name in ("precision", "tokens", "mean_difference", "max_difference")})
    print({name: proof[name] for name in ("adapter_effect", "adapter_scale", "equal_completions", "chats")})
    with OpenAI(base_url=f"{embedded.base_url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        assert "tuned" in [model.id for model in client.models.list()]
        assert chat(client, "tuned")
    engines = [member for member in list_children(worker) if "VLLM" in "".join(member.cmdline())]
    assert engines
    embedded.post(f"/deployments/{deployment['id']}/stop")
    wait_until(lambda: not any(map(psutil.Process.is_running, engines)), 120, "vLLM's processes stay")


def test_an_adapter_whose_alpha_vllm_misreads_fails_the_parity_check(embedded: Platform, wide: Path) -> None:
    misreading = ["env", f"PYTHONPATH={ROOT / 'tests/e2e/vllm_middleware'}", *PROGRAM]
    misreading += ["--middleware", "misread_alpha.MisreadAlpha"]
    embedded.start_worker(TUNESMITH_ENGINE_COMMANDS=json.dumps({"vllm": misreading}))
    job = run_job(embedded, wide, dtype="float32")
    assert (job["status"], job["runs"][1]["error"]["code"]) == ("failed", "parity_failed"), job
    (deployment,) = embedded.get("/deployments", name="tuned")["items"]
    proof = deployment["parity"]
    assert (deployment["status"], deployment["error"]["code"]) == ("failed", "parity_failed")
    assert proof["adapter_scale"] < 0.8
    assert "the engine misreads its alpha or rank" in proof["message"]
    print(proof["message"])
    assert embedded.client.get("/v1/models").json()["data"] == []
