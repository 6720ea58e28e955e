"""Deployments behind the OpenAI-compatible endpoint.

Goal: a deployment serves from its start to its stop, whatever happens to its engine. Method: the official
client against a real API, worker and engine.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from openai import NotFoundError, OpenAI

from tests.e2e.platform import QUESTION, ROOT, Platform, chat, find_engines, sft_stage, wait_until
from tests.services import free_port


@pytest.fixture(scope="module")
def openai(shared: Platform) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{shared.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_job_ends_in_a_chat_with_the_tuned_model(shared: Platform, openai: OpenAI) -> None:
    stage = {"stage": "deploy", "model": {"stage": "sft"}, "deployment": "tuned"}
    job = shared.wait_until_finished(shared.submit(sft_stage(learning_rate=0.03, max_steps=40), stage))
    assert job["status"] == "succeeded", job
    assert job["runs"][1]["result"]["deployment"] == "tuned"
    # The gateway loads its routes again after a second.
    wait_until(lambda: "tuned" in [model.id for model in openai.models.list()], 120, "the model has no route")
    stream = openai.chat.completions.create(
        model="tuned",
        messages=QUESTION,
        max_tokens=8,
        temperature=0,
        stream=True,
    )
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    shared.deploy("untuned")
    assert streamed == chat(openai, "tuned") != chat(openai, "untuned")


def test_a_killed_engine_is_restarted_and_a_stopped_one_is_not(embedded: Platform) -> None:
    openai = OpenAI(base_url=f"{embedded.base_url}/v1", api_key="none", max_retries=0)
    worker = embedded.start_worker()
    deployment = embedded.deploy("lively")
    before = chat(openai, "lively")
    engine = find_engines(worker)[0]
    engine.send_signal(signal.SIGKILL)
    embedded.wait_for_field(deployment, "restart_count", 1)
    embedded.wait_for_status(deployment, "ready")
    wait_until(lambda: bool(openai.models.list().data), 120, "the route did not come back")
    assert chat(openai, "lively") == before
    restarted = find_engines(worker)[0]
    embedded.post(f"/deployments/{deployment}/stop")
    embedded.wait_for_status(deployment, "stopped")
    assert not restarted.is_running()
    wait_until(lambda: not openai.models.list().data, 120, "the route is still there")
    with pytest.raises(NotFoundError, match="lively"):
        chat(openai, "lively")
    openai.close()


def test_an_engine_that_cannot_load_its_model_fails_the_deployment_with_its_log(
    shared: Platform,
) -> None:
    (shared.folder / "models" / "broken").mkdir()
    (shared.folder / "models" / "broken" / "config.json").write_text("{}")
    deployment = shared.post("/deployments", {"name": "broken", "model": "broken"})["id"]
    shared.wait_for_status(deployment, "failed")
    error = shared.get(f"/deployments/{deployment}")["error"]
    assert error["code"] == "deployment_failed"
    assert "broken" in error["message"]
    assert "Traceback" not in error["message"]


def test_a_standalone_gateway_reads_its_routes_from_the_api(shared: Platform) -> None:
    shared.deploy("remote")
    port = free_port()
    command = ["-m", "serving.gateway", "--api", shared.base_url, "--port", str(port)]
    gateway = subprocess.Popen(
        [sys.executable, *command], env=shared.environment, cwd=ROOT, stderr=subprocess.DEVNULL
    )
    shared.processes.append(gateway)
    with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=20) as openai:
        assert "remote" in [model.id for model in openai.models.list()]
        assert chat(openai, "remote")


def test_the_engine_mlx_generates_the_same_text_as_the_engine_hf(shared: Platform, openai: OpenAI) -> None:
    shared.deploy("by-hf", parity="on")
    shared.deploy("by-mlx", engine="mlx", options={"max_model_len": 128}, parity="on")
    assert chat(openai, "by-mlx") == chat(openai, "by-hf") != ""
