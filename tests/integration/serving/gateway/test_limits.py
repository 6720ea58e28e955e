"""Request limits, circuit breakers, metrics, the access log and several processes."""

import json
import os
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from serving.gateway.request_body import (
    RequestLimits,
    model_name_replacements,
    parse_request_body,
    replace_model_name,
)
from serving.http.errors import InvalidRequest
from tests.integration.serving.conftest import serving, wait_for
from tests.integration.serving.fake_engine import FakeEngine
from tests.services import free_port

CHAT = "/v1/chat/completions"


def run_gateway(routes: list[dict[str, Any]], folder: Path, *arguments: str) -> Any:
    file = folder / "routes.json"
    file.write_text(json.dumps(routes))
    return serving(folder / "gateway.log", "serving.gateway", "--routes", str(file), *arguments)


@pytest.mark.parametrize(
    ("body", "model", "sent"),
    [
        (b' { "a" : [1,  2.50], "model" : "x" } ', "x", b'{"a":[1,  2.50],"model":"up"}'),
        (b'{"model":"x","model":"y"}', "y", b'{"model":"up"}'),
        (b'{"mod\\u0065l":"y","m":{"model":"z"}}', "y", b'{"model":"up","m":{"model":"z"}}'),
        (
            '{"model":"한","t":"\\ud55c\\"model\\":"}'.encode(),
            "한",
            b'{"model":"up","t":"\\ud55c\\"model\\":"}',
        ),
        (b'{"big":123456789012345678901234567890,"model":"x"}', "x", None),
    ],
)
def test_only_the_model_name_of_a_body_changes(body: bytes, model: str, sent: bytes | None) -> None:
    parsed = parse_request_body(body, RequestLimits())
    assert parsed.model == model
    assert parsed.encode("up") == sent or sent is None
    assert json.loads(parsed.encode("up")) == json.loads(body) | {"model": "up"}


def test_generated_text_is_not_mistaken_for_the_model_name() -> None:
    response = json.dumps({"text": '"model":"up", "model": "up"', "model": "up"}, indent=None)
    for text in (response, response.replace(": ", ":")):
        replaced = replace_model_name(text.encode(), model_name_replacements("up", 'a "b"'))
        assert json.loads(replaced) == json.loads(text) | {"model": 'a "b"'}
    assert model_name_replacements("same", "same") == ()


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"x","t":"\xff"}',
        b'{"model":"x","t":NaN}',
        b'{"model":"x"}{}',
        b'{"model":"x",}',
        b'{"model":null}',
        b'{"model":"x","t":' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_json_that_engines_might_parse_differently_is_rejected(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_request_body(body, RequestLimits())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 129),
        ("max_tokens", 1e9),
        ("max_tokens", "9000000000"),
        ("n", "2"),
        ("max_completion_tokens", 2_000_000),
        ("prompt", ["a"] * 1025),
        ("prompt", [[1]] * 1025),
        ("adapters", "/etc"),
        ("draft_model", "/models/x"),
        ("chat_template", "{{ x }}"),
        ("chat_template_kwargs", {"chat_template": "{{ x }}"}),
        ("logits_processors", ["os.system"]),
        ("lora_path", "/etc"),
    ],
)
def test_a_field_over_its_limit_or_with_access_to_files_is_rejected(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as rejected:
        parse_request_body(json.dumps({"model": "x", field: value}).encode(), RequestLimits())
    assert rejected.value.param == field


def test_a_long_prompt_of_token_ids_is_one_prompt() -> None:
    fields = {"model": "x", "prompt": list(range(5000)), "chat_template_kwargs": {"enable_thinking": False}}
    assert parse_request_body(json.dumps(fields).encode(), RequestLimits()).model == "x"


def test_a_failing_engine_gets_no_requests_until_one_tests_it(
    fake_engine: FakeEngine, tmp_path: Path
) -> None:
    with run_gateway([{"name": "broken", "base_url": fake_engine.url}], tmp_path) as gateway:
        gateway.wait_until_ready()
        responses = [gateway.post(CHAT, {"model": "broken"}) for _ in range(8)]
        assert [status for status, _ in responses] == [500] * 5 + [503] * 3
        assert "receives no requests" in responses[-1][1]["error"]["message"]
        assert fake_engine.request_counts["broken"] == 5
        time.sleep(5.1)
        assert [gateway.post(CHAT, {"model": "broken"})[0] for _ in range(2)] == [500, 503]
        assert fake_engine.request_counts["broken"] == 6


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
    has_usage = options is None or options["include_usage"]
    assert (line["prompt_tokens"], line["completion_tokens"]) == ((3, 5) if has_usage else (None, None))
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
        wait_for(lambda: request_count() == 30)
        time.sleep(1.5)
        os.kill(parent.children()[0].pid, signal.SIGKILL)
        wait_for(lambda: len([child for child in parent.children() if is_running(child)]) == 2)
        wait_for(lambda: request_count() == 30)


def is_running(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
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
        request = urllib.request.Request(gateway.url + CHAT, b'{"model": "slow", "stream": true}')
        with urllib.request.urlopen(request, timeout=20) as response:
            response.readline()
            gateway.process.terminate()
            assert response.read().endswith(b"data: [DONE]\n\n")
        assert gateway.process.wait(60) == 0
