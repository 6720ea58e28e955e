"""The notice of an interruption on a spot machine at AWS, from a stand-in for the metadata service."""

import pytest

from tests.clouds.http_stand_in import HttpStandIn
from workers.clouds.spot_notice import has_notice, watch

NOTICE = b'{"action": "terminate", "time": "2026-11-29T12:02:00Z"}'


class Metadata(HttpStandIn):
    """Version 2 of the metadata service, which requires a token."""

    def __init__(self) -> None:
        self.has_notice = False
        self.tokens = 0
        super().__init__()

    def handle(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes] | None:
        if (method, path) == ("PUT", "/latest/api/token"):
            self.tokens += "x-aws-ec2-metadata-token-ttl-seconds" in headers
            return 200, {}, b"token-1"
        if headers.get("x-aws-ec2-metadata-token") != "token-1":
            return 401, {}, b""
        is_known = path == "/latest/meta-data/spot/instance-action" and self.has_notice
        return (200, {}, NOTICE) if is_known else (404, {}, b"")


def test_the_worker_stops_once_when_the_notice_arrives() -> None:
    stopped: list[bool] = []
    with Metadata() as metadata:

        def pass_time(seconds: float) -> None:
            assert stopped == []
            metadata.has_notice = metadata.tokens >= 3

        watch(lambda: has_notice(metadata.url), lambda: stopped.append(True), pass_time)
    assert (stopped, metadata.tokens) == ([True], 4)


def test_metadata_that_do_not_respond_are_no_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    with Metadata() as metadata:
        url = metadata.url
    assert not has_notice(url)


def test_the_token_is_not_sent_to_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with Metadata() as metadata:
        metadata.has_notice = True
        assert has_notice(metadata.url)
