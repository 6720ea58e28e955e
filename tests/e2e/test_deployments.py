"""A deployment answers on the OpenAI-compatible endpoint for as long as it is wanted."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from openai import NotFoundError, OpenAI

from tests.e2e.platform import QUESTION, ROOT, Platform, ask, engines_of, sft, until
from tests.services import free_port


@pytest.fixture(scope="module")
def openai(shared: Platform) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{shared.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_job_ends_in_a_chat_with_the_tuned_model(shared: Platform, openai: OpenAI) -> None:
    stage = {"stage": "deploy", "model": {"stage": "sft"}, "deployment": "tuned"}
    job = shared.finish(shared.submit(sft(learning_rate=0.01, max_steps=40), stage))
    assert job["status"] == "succeeded", job
    assert job["runs"][1]["result"]["deployment"] == "tuned"
    assert "tuned" in [model.id for model in openai.models.list()]
    stream = openai.chat.completions.create(
        model="tuned",
        messages=QUESTION,
        max_tokens=8,
        temperature=0,
        stream=True,  # type: ignore[arg-type]
    )
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    shared.deploy("untuned")
    assert streamed == ask(openai, "tuned") != ask(openai, "untuned")


def test_killed_engine_is_started_again_and_a_stopped_one_stays_away(embedded: Platform) -> None:
    openai = OpenAI(base_url=f"{embedded.base_url}/v1", api_key="none", max_retries=0)
    worker = embedded.start_worker()
    deployment = embedded.deploy("lively")
    before = ask(openai, "lively")
    engine = engines_of(worker)[0]
    engine.send_signal(signal.SIGKILL)
    until(lambda: embedded.get(f"/deployments/{deployment}")["restart_count"] == 1, 120, "nobody saw it die")
    embedded.await_status(deployment, "ready")
    until(lambda: bool(openai.models.list().data), 120, "the route does not come back")
    assert ask(openai, "lively") == before
    again = engines_of(worker)[0]
    embedded.post(f"/deployments/{deployment}/stop")
    embedded.await_status(deployment, "stopped")
    assert not again.is_running()
    until(lambda: not openai.models.list().data, 120, "the route is still there")
    with pytest.raises(NotFoundError, match="lively"):
        ask(openai, "lively")
    openai.close()


def test_engine_that_cannot_load_its_model_fails_the_deployment_with_its_words(shared: Platform) -> None:
    (shared.folder / "models" / "broken").mkdir()
    (shared.folder / "models" / "broken" / "config.json").write_text("{}")
    deployment = shared.post("/deployments", {"name": "broken", "model": "broken"})["id"]
    shared.await_status(deployment, "failed")
    error = shared.get(f"/deployments/{deployment}")["error"]
    assert error["code"] == "deployment_failed"
    assert "broken" in error["message"]
    assert "Traceback" not in error["message"]


def test_gateway_alone_finds_its_routes_through_the_api(shared: Platform) -> None:
    shared.deploy("remote")
    port = free_port()
    command = ["-m", "serving.gateway", "--api", shared.base_url, "--port", str(port)]
    gateway = subprocess.Popen(
        [sys.executable, *command], env=shared.environment, cwd=ROOT, stderr=subprocess.DEVNULL
    )
    shared.processes.append(gateway)
    with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=20) as openai:
        assert "remote" in [model.id for model in openai.models.list()]
        assert ask(openai, "remote")


def test_engine_mlx_answers_as_the_engine_hf_does(shared: Platform, openai: OpenAI) -> None:
    shared.deploy("by-hf", parity="on")
    shared.deploy("by-mlx", engine="mlx", options={"max_model_len": 128}, parity="on")
    assert ask(openai, "by-mlx") == ask(openai, "by-hf") != ""
