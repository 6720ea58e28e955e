"""Circuit breakers, metrics, the access log and several processes of the gateway."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.integration.serving.conftest import WAIT_SECONDS, serving, wait_for
from tests.integration.serving.fake_engine import FakeEngine
from tests.services import free_port

CHAT = "/v1/chat/completions"


def run_gateway(routes: list[dict[str, Any]], folder: Path, *arguments: str) -> Any:
    file = folder / "routes.json"
    file.write_text(json.dumps(routes))
    return serving(folder / "gateway.log", "serving.gateway", "--routes", str(file), *arguments)


def test_a_failing_engine_gets_no_more_requests(fake_engine: FakeEngine, tmp_path: Path) -> None:
    with run_gateway([{"name": "broken", "base_url": fake_engine.url}], tmp_path) as gateway:
        gateway.wait_until_ready()
        responses = [gateway.post(CHAT, {"model": "broken"}) for _ in range(8)]
        assert [status for status, _ in responses] == [500] * 5 + [503] * 3
        assert "receives no requests" in responses[-1][1]["error"]["message"]
        assert fake_engine.request_counts["broken"] == 5


def test_rate_limit_errors_of_an_engine_do_not_open_its_circuit(
    fake_engine: FakeEngine, tmp_path: Path
) -> None:
    with run_gateway([{"name": "busy", "base_url": fake_engine.url}], tmp_path) as gateway:
        gateway.wait_until_ready()
        assert [gateway.post(CHAT, {"model": "busy"})[0] for _ in range(7)] == [429] * 7


def test_an_alias_continues_with_the_target_that_responds(fake_engine: FakeEngine, tmp_path: Path) -> None:
    gone = {"base_url": f"http://127.0.0.1:{free_port()}", "share": 9}
    targets = [gone, {"base_url": fake_engine.url, "upstream_model": "plain"}]
    with run_gateway([{"name": "prod", "targets": targets}], tmp_path) as gateway:
        gateway.wait_until_ready()
        assert [gateway.post(CHAT, {"model": "prod"})[0] for _ in range(20)] == [200] * 20


def test_log_and_metrics_contain_tokens_and_times(fake_engine: FakeEngine, tmp_path: Path) -> None:
    with run_gateway([{"name": "plain", "base_url": fake_engine.url}], tmp_path) as gateway:
        gateway.wait_until_ready()
        assert gateway.post(CHAT, {"model": "plain"})[0] == 200
        metrics = gateway.get("/metrics")[1]
        wait_for(lambda: '"plain"' in gateway.log.read_text())
        (line,) = [json.loads(line) for line in gateway.log.read_text().splitlines() if '"plain"' in line]
    assert (line["prompt_tokens"], line["completion_tokens"], line["status"]) == (3, 5, 200)
    assert 0 < line["first_byte_seconds"] <= line["seconds"]
    assert 'tunesmith_gateway_completion_tokens_sum{model="plain"} 5.0' in metrics
    assert 'tunesmith_gateway_prompt_tokens_bucket{le="4.0",model="plain"} 1.0' in metrics


@pytest.mark.parametrize("options", [None, {"include_usage": True}, {"include_usage": False}])
def test_a_streams_tokens_are_logged_and_sent_only_if_requested(
    fake_engine: FakeEngine, tmp_path: Path, options: dict[str, bool] | None
) -> None:
    with run_gateway([{"name": "usage", "base_url": fake_engine.url}], tmp_path) as gateway:
        gateway.wait_until_ready()
        stream = gateway.post(CHAT, {"model": "usage", "stream": True, "stream_options": options})[1]
        wait_for(lambda: '"usage"' in gateway.log.read_text())
        (line,) = [json.loads(line) for line in gateway.log.read_text().splitlines() if '"usage"' in line]
    assert (line["prompt_tokens"], line["completion_tokens"]) == (3, 5)
    assert ("usage" in stream) == (options == {"include_usage": True})
    assert stream.endswith("data: [DONE]\n\n")


def test_processes_share_metrics_and_a_dead_one_is_restarted(fake_engine: FakeEngine, tmp_path: Path) -> None:
    with run_gateway([{"name": "plain", "base_url": fake_engine.url}], tmp_path, "--workers", "2") as gateway:
        gateway.wait_until_ready()
        parent = psutil.Process(gateway.process.pid)
        wait_for(lambda: len(parent.children()) == 2)

        def request_count() -> float:
            # A connection to the process that is killed gets no response.
            metrics = gateway.get("/metrics")[1] or ""
            lines = [line for line in metrics.splitlines() if 'requests_total{model="plain"' in line]
            return float(lines[0].split()[1]) if lines else 0

        for _ in range(30):
            assert gateway.post(CHAT, {"model": "plain"})[0] == 200
        # Each request reaches one of the processes at random. Both have published their metrics when both
        # report the sum.
        wait_for(lambda: all(request_count() == 30 for _ in range(20)))
        os.kill(parent.children()[0].pid, signal.SIGKILL)
        wait_for(lambda: len([child for child in parent.children() if is_running(child)]) == 2)
        wait_for(lambda: request_count() == 30)


def is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_processes_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    with run_gateway([], tmp_path, "--workers", "2") as gateway:
        gateway.wait_until_ready()
        children = psutil.Process(gateway.process.pid).children()
        gateway.process.kill()
        _, alive = psutil.wait_procs(children, timeout=60)
        assert alive == []


def test_a_response_in_progress_is_completed_before_the_gateway_stops(
    fake_engine: FakeEngine, tmp_path: Path
) -> None:
    with run_gateway([{"name": "slow", "base_url": fake_engine.url}], tmp_path) as gateway:
        gateway.wait_until_ready()
        body = {"model": "slow", "stream": True}
        with httpx2.stream("POST", gateway.url + CHAT, json=body, timeout=WAIT_SECONDS) as response:
            chunks = response.iter_raw()
            next(chunks)
            gateway.process.terminate()
            assert b"".join(chunks).endswith(b"data: [DONE]\n\n")
        assert gateway.process.wait(60) == 0
