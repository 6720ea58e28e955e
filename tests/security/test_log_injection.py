"""A client cannot write lines of its own into the log, nor series of its own into the metrics."""

import json
import logging

import pytest
from starlette.testclient import TestClient

from app.logs import configure_logging
from tests.conftest import forget_log_handlers
from tests.security.regression import Regression

FORGED = 'ok\n{"level": "INFO", "message": "forged"}'
PATHS = [
    "/api/v1/jobs/%0A%7B%22message%22:%22forged%22%7D",
    "/api/v1/%0d%0aforged",
    "/v1/models/forged%0A%7B%7D",
    "/api/v1/jobs/%E2%80%A8forged",
    "/api/v1/jobs/%1b[31mforged",
]


def send_all(client: TestClient) -> None:
    for path in PATHS:
        client.get(path, headers={"X-Request-Id": "forged\tforged", "User-Agent": "forged"})
    client.get("/api/v1/jobs", headers={"X-Request-Id": "a" * 500})
    client.post("/v1/chat/completions", json={"model": FORGED, "messages": []})
    client.post("/api/v1/jobs", json={"name": FORGED, "stages": [{"stage": FORGED}]})


def test_every_line_of_the_log_is_one_record_of_ours(
    client: TestClient, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("INFO")
    send_all(client)
    client.get("/healthz")
    lines = [line for stream in capsys.readouterr() for line in stream.split("\n") if line]
    records = [json.loads(line) for line in lines]
    assert len(records) > len(PATHS)
    assert [record for record in records if record["message"] == "forged"] == []


def test_no_test_logs_to_the_output_of_an_earlier_one(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO")
    forget_log_handlers()
    logging.getLogger("aiohttp.access").info("a request of a later test")
    assert capsys.readouterr() == ("", "")


def test_a_request_id_of_the_client_is_logged_only_if_it_is_plain(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    for given in ("forged\tline", "a" * 129, "ä", "x y", "<b>", '"', "\x1b[31m"):
        with caplog.at_level(logging.INFO):
            headers = [(b"x-request-id", given.encode("latin-1"))]
            returned = client.get("/api/v1/jobs", headers=headers).headers["x-request-id"]
        assert returned.startswith("req_") and given not in caplog.text
    assert client.get("/api/v1/jobs", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"


def test_paths_and_model_names_of_clients_make_no_series(client: TestClient) -> None:
    def count_series() -> int:
        return len(client.get("/metrics").text.splitlines())

    send_all(client)
    before = count_series()
    for i in range(50):
        client.get(f"/api/v1/jobs/job_{i}")
        client.get(f"/unknown/{i}")
        client.post("/v1/chat/completions", json={"model": f"unknown-{i}", "messages": []})
    after = client.get("/metrics").text
    assert len(after.splitlines()) - before < 40 and "unknown-" not in after


REGRESSIONS = [
    Regression(
        "log lines are formatted as text",
        "app.logs:JsonFormatter.format",
        lambda formatter, record: f'{{"message": "{record.getMessage()}"}}',
        "test_every_line_of_the_log_is_one_record_of_ours",
    ),
    Regression(
        "any request id is logged",
        "app.http.middleware:_request_id",
        lambda scope: dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1"),
        "test_a_request_id_of_the_client_is_logged_only_if_it_is_plain",
    ),
    Regression(
        "requests are counted by path",
        "app.http.middleware:_route_template",
        lambda scope: scope["path"],
        "test_paths_and_model_names_of_clients_make_no_series",
    ),
]
