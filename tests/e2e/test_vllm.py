"""The real vLLM behind the whole service: `TUNESMITH_ENGINE_COMMANDS` names it, or it is on PATH."""

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
from tests.e2e.platform import ROOT, Platform, ask, family_of, sft, until

PROGRAM = json.loads(os.environ.get("TUNESMITH_ENGINE_COMMANDS", "{}")).get("vllm", ["vllm", "serve"])

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(shutil.which(PROGRAM[0]) is None, reason="vLLM is not installed"),
]


@pytest.fixture
def wide(embedded: Platform) -> Path:
    """A base under the service's models; the starter's heads are too narrow for vLLM's CPU kernels."""
    folder = embedded.folder / "models" / "tiny"
    program = ROOT / "tests" / "serving" / "make_tiny.py"
    subprocess.run([sys.executable, program, folder, "32"], check=True, capture_output=True)
    return folder / "base"


def deployed(embedded: Platform, wide: Path, **options: Any) -> Any:
    """The job that trains an adapter and deploys it, proved, when it has ended."""
    stage = {"stage": "deploy", "model": {"stage": "sft"}, "deployment": "tuned", "engine": "vllm"}
    options |= {"max_model_len": 512, "cpu_cache_gib": 1}
    stage |= {"options": options, "ready_timeout_seconds": 1200, "parity": "on"}
    return embedded.finish(embedded.submit(sft(base=str(wide), learning_rate=0.01), stage), 1500)


# Where no dtype is asked for, vLLM serves these weights in bfloat16.
@pytest.mark.parametrize(("options", "precision"), [({"dtype": "float32"}, "float32"), ({}, "bfloat16")])
def test_job_ends_in_a_chat_with_the_tuned_model_on_vllm_which_is_proved_to_be_it(
    embedded: Platform, wide: Path, options: dict[str, str], precision: str
) -> None:
    worker = embedded.start_worker(TUNESMITH_ENGINE_COMMANDS=json.dumps({"vllm": PROGRAM}))
    job = deployed(embedded, wide, **options)
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
        assert ask(client, "tuned")
    engines = [member for member in family_of(worker) if "VLLM" in "".join(member.cmdline())]
    assert engines
    embedded.post(f"/deployments/{deployment['id']}/stop")
    until(lambda: not any(map(psutil.Process.is_running, engines)), 120, "vLLM's processes stay")


def test_an_adapter_whose_alpha_vllm_misreads_is_kept_out_of_service(embedded: Platform, wide: Path) -> None:
    misreading = ["env", f"PYTHONPATH={ROOT / 'tests/e2e/vllm_middleware'}", *PROGRAM]
    misreading += ["--middleware", "misread_alpha.MisreadAlpha"]
    embedded.start_worker(TUNESMITH_ENGINE_COMMANDS=json.dumps({"vllm": misreading}))
    job = deployed(embedded, wide, dtype="float32")
    assert (job["status"], job["runs"][1]["error"]["code"]) == ("failed", "parity_failed"), job
    (deployment,) = embedded.get("/deployments", name="tuned")["items"]
    proof = deployment["parity"]
    assert (deployment["status"], deployment["error"]["code"]) == ("failed", "parity_failed")
    assert proof["adapter_scale"] < 0.8
    assert "the engine misreads its alpha or rank" in proof["message"]
    print(proof["message"])
    assert embedded.client.get("/v1/models").json()["data"] == []
