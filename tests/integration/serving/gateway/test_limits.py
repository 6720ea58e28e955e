"""What the gateway refuses, counts and leaves alone: limits, circuits, metrics, the log and workers."""

import json
import os
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from serving.gateway.renaming import names_in_answers, renamed
from serving.gateway.request_body import RequestLimits, read
from serving.http.errors import InvalidRequest
from tests.integration.serving.conftest import serving, wait_for
from tests.integration.serving.engine_stand_in import FakeEngine
from tests.services import free_port

CHAT = "/v1/chat/completions"


def started(routes: list[dict[str, Any]], folder: Path, *arguments: str) -> Any:
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
def test_the_model_is_renamed_and_every_value_stays_as_it_came(
    body: bytes, model: str, sent: bytes | None
) -> None:
    plan = read(body, RequestLimits())
    assert plan.model == model
    assert plan.body("up") == sent or sent is None
    assert json.loads(plan.body("up")) == json.loads(body) | {"model": "up"}


def test_no_text_is_taken_for_the_models_name_in_an_answer() -> None:
    answer = json.dumps({"text": '"model":"up", "model": "up"', "model": "up"}, indent=None)
    for told in (answer, answer.replace(": ", ":")):
        passed = renamed(told.encode(), names_in_answers("up", 'a "b"'))
        assert json.loads(passed) == json.loads(told) | {"model": 'a "b"'}
    assert names_in_answers("same", "same") == ()


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
def test_what_engines_might_read_differently_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read(body, RequestLimits())


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
def test_a_field_that_asks_for_too_much_or_for_files_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(json.dumps({"model": "x", field: value}).encode(), RequestLimits())
    assert refused.value.param == field


def test_a_long_prompt_of_token_ids_is_one_prompt() -> None:
    fields = {"model": "x", "prompt": list(range(5000)), "chat_template_kwargs": {"enable_thinking": False}}
    assert read(json.dumps(fields).encode(), RequestLimits()).model == "x"


def test_an_engine_that_fails_is_left_alone_and_tried_again(stand_in: FakeEngine, tmp_path: Path) -> None:
    with started([{"name": "broken", "base_url": stand_in.url}], tmp_path) as front:
        front.wait_until_ready()
        answers = [front.post(CHAT, {"model": "broken"}) for _ in range(8)]
        assert [status for status, _ in answers] == [500] * 5 + [503] * 3
        assert "left alone" in answers[-1][1]["error"]["message"]
        assert stand_in.asked["broken"] == 5
        time.sleep(5.1)
        assert [front.post(CHAT, {"model": "broken"})[0] for _ in range(2)] == [500, 503]
        assert stand_in.asked["broken"] == 6


def test_refusals_of_an_engine_and_clients_that_leave_open_no_circuit(
    stand_in: FakeEngine, tmp_path: Path
) -> None:
    with started([{"name": "busy", "base_url": stand_in.url}], tmp_path) as front:
        front.wait_until_ready()
        assert [front.post(CHAT, {"model": "busy"})[0] for _ in range(7)] == [429] * 7


def test_an_alias_goes_on_with_the_target_that_answers(stand_in: FakeEngine, tmp_path: Path) -> None:
    gone = {"base_url": f"http://127.0.0.1:{free_port()}", "share": 9}
    targets = [gone, {"base_url": stand_in.url, "upstream_model": "plain"}]
    with started([{"name": "prod", "targets": targets}], tmp_path) as front:
        front.wait_until_ready()
        assert [front.post(CHAT, {"model": "prod"})[0] for _ in range(20)] == [200] * 20


def test_the_log_and_the_metrics_tell_tokens_and_times(stand_in: FakeEngine, tmp_path: Path) -> None:
    with started([{"name": "plain", "base_url": stand_in.url}], tmp_path) as front:
        front.wait_until_ready()
        assert front.post(CHAT, {"model": "plain"})[0] == 200
        metrics = front.get("/metrics")[1]
        wait_for(lambda: '"plain"' in front.log.read_text())
        (line,) = [json.loads(line) for line in front.log.read_text().splitlines() if '"plain"' in line]
    assert (line["prompt_tokens"], line["completion_tokens"], line["status"]) == (3, 5, 200)
    assert 0 < line["first_byte_seconds"] <= line["seconds"]
    assert 'tunesmith_gateway_completion_tokens_sum{model="plain"} 5.0' in metrics
    assert 'tunesmith_gateway_prompt_tokens_bucket{le="4.0",model="plain"} 1.0' in metrics


@pytest.mark.parametrize("options", [None, {"include_usage": True}, {"include_usage": False}])
def test_the_tokens_of_a_stream_are_logged_and_shown_to_whom_asked(
    stand_in: FakeEngine, tmp_path: Path, options: dict[str, bool] | None
) -> None:
    with started([{"name": "counts", "base_url": stand_in.url}], tmp_path) as front:
        front.wait_until_ready()
        told = front.post(CHAT, {"model": "counts", "stream": True, "stream_options": options})[1]
        wait_for(lambda: '"counts"' in front.log.read_text())
        (line,) = [json.loads(line) for line in front.log.read_text().splitlines() if '"counts"' in line]
    wanted = options is None or options["include_usage"]
    assert (line["prompt_tokens"], line["completion_tokens"]) == ((3, 5) if wanted else (None, None))
    assert ("usage" in told) == (options == {"include_usage": True})
    assert told.endswith("data: [DONE]\n\n")


def test_workers_count_together_and_a_dead_one_is_started_again(stand_in: FakeEngine, tmp_path: Path) -> None:
    with started([{"name": "plain", "base_url": stand_in.url}], tmp_path, "--workers", "2") as front:
        front.wait_until_ready()
        parent = psutil.Process(front.process.pid)
        wait_for(lambda: len(parent.children()) == 2)

        def asked() -> float:
            # A connection that waits for the worker which is killed gets no answer.
            metrics = front.get("/metrics")[1] or ""
            lines = [line for line in metrics.splitlines() if 'requests_total{model="plain"' in line]
            return float(lines[0].split()[1]) if lines else 0

        for _ in range(30):
            assert front.post(CHAT, {"model": "plain"})[0] == 200
        wait_for(lambda: asked() == 30)
        time.sleep(1.5)
        os.kill(parent.children()[0].pid, signal.SIGKILL)
        wait_for(lambda: len([child for child in parent.children() if lives(child)]) == 2)
        wait_for(lambda: asked() == 30)


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    with started([], tmp_path, "--workers", "2") as front:
        front.wait_until_ready()
        children = psutil.Process(front.process.pid).children()
        front.process.kill()
        _, alive = psutil.wait_procs(children, timeout=60)
        assert alive == []


def test_an_answer_under_way_is_finished_before_the_gateway_ends(
    stand_in: FakeEngine, tmp_path: Path
) -> None:
    with started([{"name": "slow", "base_url": stand_in.url}], tmp_path) as front:
        front.wait_until_ready()
        request = urllib.request.Request(front.url + CHAT, b'{"model": "slow", "stream": true}')
        with urllib.request.urlopen(request, timeout=20) as answer:
            answer.readline()
            front.process.terminate()
            assert answer.read().endswith(b"data: [DONE]\n\n")
        assert front.process.wait(60) == 0
