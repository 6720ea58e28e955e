"""The real vLLM behind the whole service: `TUNESMITH_ENGINE_PROGRAMS` names it, or it is on PATH."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from openai import OpenAI

from tests.e2e.platform import ROOT, Platform, family_of, sft, until

PROGRAM = json.loads(os.environ.get("TUNESMITH_ENGINE_PROGRAMS", "{}")).get("vllm", ["vllm", "serve"])

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


def test_job_ends_in_a_chat_with_the_tuned_model_on_vllm(embedded: Platform, wide: Path) -> None:
    worker = embedded.start_worker(TUNESMITH_ENGINE_PROGRAMS=json.dumps({"vllm": PROGRAM}))
    options = {"dtype": "float32", "max_model_len": 512, "cpu_cache_gib": 1}
    stage = {"stage": "deploy", "model": {"stage": "sft"}, "deployment": "tuned", "engine": "vllm"}
    stage |= {"options": options, "ready_timeout_seconds": 1200}
    job = embedded.finish(embedded.submit(sft(base=str(wide), learning_rate=0.01), stage), 1500)
    assert job["status"] == "succeeded", job
    with OpenAI(base_url=f"{embedded.base_url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        assert "tuned" in [model.id for model in client.models.list()]
        messages = [{"role": "user", "content": "Kofi has 3 cups and buys 4 more. How many has he?"}]
        answer = client.chat.completions.create(model="tuned", messages=messages, max_tokens=16)  # type: ignore[arg-type]
    assert answer.choices[0].message.content
    engines = [member for member in family_of(worker) if "VLLM" in "".join(member.cmdline())]
    assert engines
    embedded.post(f"/deployments/{job['runs'][1]['result']['deployment_id']}/stop")
    until(lambda: not any(map(psutil.Process.is_running, engines)), 60, "vLLM's processes stay")
