"""The service and its engines fetch nothing that a client names (server-side request forgery).

Attacks: URLs of media in chats, hidden by escapes and odd spellings; the address of an engine in a job; and
URLs in place of names of models and datasets.
"""

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from serving.gateway.request_body import RequestLimits, parse_request_body
from serving.http.errors import InvalidRequest
from tests.security.regression import Regression, ignore

URLS = [
    "http://169.254.169.254/latest/meta-data",
    "https://evil.example/x.png",
    "HTTP://127.0.0.1:8000/api/v1/keys",
    "  http://127.0.0.1",
    "file:///etc/passwd",
    "ftp://x/y",
    "s3://bucket/key",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "\x01http://127.0.0.1",
    "ht\ntp://127.0.0.1",
]
# SGLang opens a path in the place of a URL.
PATHS = ["/etc/secret.png", "//127.0.0.1/x.png", "..\\x.png"]
CHAT = "/v1/chat/completions"


def chat(part: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": [part]}]}).encode()


def response(part: Any) -> bytes:
    return json.dumps({"model": "m", "input": [{"role": "user", "content": [part]}]}).encode()


@pytest.mark.parametrize("url", URLS)
def test_no_engine_gets_the_url_of_a_medium(url: str) -> None:
    bodies = [
        (CHAT, chat({"type": "image_url", "image_url": {"url": url}})),
        (CHAT, chat({"type": "image_url", "image_url": url})),
        (CHAT, chat({"type": "video_url", "video_url": {"url": url}})),
        (CHAT, chat({"type": "Audio_Url", "audio_url": {"url": url}})),
        (CHAT, chat({"type": "file", "file": {"file_data": url}})),
        # vLLM accepts parts without a type.
        (CHAT, chat({"image_url": {"url": url}})),
        (CHAT, chat({"video_url": url})),
        (CHAT, chat({"input_audio": {"data": url}})),
        (CHAT, chat({"image_url": {"url": url}, "type": "image_url"}).replace(b'"type"', b'"\\u0074ype"')),
        (CHAT, chat({"type": "image_url", "image_url": {"url": url}}).replace(b"image", b"\\u0069mage")),
        ("/v1/responses", response({"type": "input_image", "image_url": url})),
        ("/v1/responses", response({"type": "input_file", "file_url": url})),
    ]
    for path, body in bodies:
        with pytest.raises(InvalidRequest, match="URL"):
            parse_request_body(path, body, RequestLimits())


@pytest.mark.parametrize("path", PATHS)
def test_no_engine_gets_a_path_in_the_place_of_a_url(path: str) -> None:
    for part in ({"type": "image_url", "image_url": {"url": path}}, {"image_url": path}):
        with pytest.raises(InvalidRequest, match="URL"):
            parse_request_body(CHAT, chat(part), RequestLimits())


def test_content_of_many_levels_is_refused_before_it_is_searched() -> None:
    part: Any = "x"
    for _ in range(70):
        part = [part]
    with pytest.raises(InvalidRequest, match="more than 64 levels"):
        parse_request_body(CHAT, chat({"type": part}), RequestLimits())


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": "http://example.com is a URL"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
        {"image_url": "data:image/png;base64,aGk="},
        {"type": "input_audio", "input_audio": {"data": "/9j/4AAQ", "format": "wav"}},
        {"type": "text", "text": "x", "annotations": [{"type": "url_citation", "url": "https://x"}]},
    ],
)
def test_a_text_with_a_url_and_data_in_the_request_are_forwarded(part: dict[str, Any]) -> None:
    assert parse_request_body(CHAT, chat(part), RequestLimits()).model == "m"


def test_a_job_names_no_address_of_an_engine(client: TestClient) -> None:
    for url in URLS:
        stage = {"stage": "generate", "model": "org/model", "dataset": "d", "engine_url": url}
        refused = client.post("/api/v1/jobs", json={"name": "x", "stages": [stage]})
        assert refused.status_code == 422
        assert "stages.0.engine_url" in {field["field"] for field in refused.json()["error"]["fields"]}


@pytest.mark.parametrize("url", URLS)
def test_a_url_is_no_name_of_a_model_or_dataset(client: TestClient, url: str) -> None:
    source = {"kind": "hub", "name": url}
    for stage in (
        {"stage": "sft", "base": url, "dataset": "d"},
        {"stage": "sft", "base": "org/model", "dataset": url},
        {"stage": "prepare", "recipe": {"kind": "gsm8k"}, "source": source},
    ):
        assert client.post("/api/v1/jobs", json={"name": "x", "stages": [stage]}).status_code == 422
    assert client.post("/api/v1/deployments", json={"name": "x", "model": url}).status_code == 422


REGRESSIONS = [
    Regression(
        "media are not checked",
        "serving.gateway.request_body:check_media",
        ignore,
        "test_no_engine_gets_the_url_of_a_medium",
    ),
    Regression(
        "an engine's address is taken from the job",
        "app.jobs.plan_checks:EngineClientConfig",
        type("Nothing", (), {}),
        "test_a_job_names_no_address_of_an_engine",
    ),
]
