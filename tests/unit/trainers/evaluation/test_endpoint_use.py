"""What an evaluation takes from the responses of models that already generate, and counts for the key."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from trainers.configs.stages.generate import GenerateConfig
from trainers.evaluation import reference_scores
from trainers.evaluation.reference_scores import score_references
from trainers.evaluation.row_completions import complete_rows
from trainers.rendering.render import PromptCompletion
from trainers.runtime.endpoints import Endpoint, TokenMeter

PROMPT = PromptCompletion(
    1, [{"role": "user", "content": "2 + 2"}], [{"role": "assistant", "content": "4"}], None
)


class Engine(BaseHTTPRequestHandler):
    """An engine that reports usage for scored prompts only; a prompt has two tokens, and a reference one."""

    def do_POST(self) -> None:
        body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["content-length"])))
        response: dict[str, Any] = {"choices": [{"message": {"content": "4"}}]}
        if self.path == "/tokenize":
            response = {"tokens": [1, 2] if body["add_generation_prompt"] else [1, 2, 3]}
        elif self.path == "/v1/completions":
            scores = {"logprobs": {"token_logprobs": [None, -1.0, -0.5]}}
            response = {"choices": [scores], "usage": {"prompt_tokens": 3, "completion_tokens": 0}}
        content = json.dumps(response).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def engine() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Engine) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("is_metered", "tokens"), [(True, 3), (False, 0)])
def test_scored_references_count_for_the_key_of_a_deployment(
    engine: str, is_metered: bool, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = TokenMeter()
    monkeypatch.setattr(reference_scores, "METER", meter)
    endpoint = Endpoint(engine, "m", is_engine=True, is_metered=is_metered)
    assert list(score_references([PROMPT], endpoint, 1)) == [(1, [-0.5])]
    assert meter.total == tokens


def test_a_response_without_usage_or_the_reason_of_its_end_is_a_completion(
    engine: str, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    config = GenerateConfig(model="m", dataset="rows.jsonl")
    complete_rows(config, [PROMPT], Endpoint(engine, "m", is_engine=True), output, lambda _: None)
    (line,) = map(json.loads, output.read_text().splitlines())
    assert (line["prediction"], line["finish_reason"], line["completion_tokens"]) == ("4", None, 0)
