"""The notice of an interruption on a spot machine at AWS, from a stand-in for the metadata service."""

import pytest

from tests.clouds.spot_metadata import SpotMetadata
from workers.clouds.spot_notice import has_notice, watch


def test_the_worker_stops_once_when_the_notice_arrives() -> None:
    stopped: list[bool] = []
    with SpotMetadata() as metadata:

        def pass_time(seconds: float) -> None:
            assert stopped == []
            metadata.has_notice = metadata.tokens >= 3

        watch(lambda: has_notice(metadata.url), lambda: stopped.append(True), pass_time)
    assert (stopped, metadata.tokens) == ([True], 4)


def test_metadata_that_do_not_respond_are_no_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    with SpotMetadata() as metadata:
        url = metadata.url
    assert not has_notice(url)


def test_the_token_is_not_sent_to_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with SpotMetadata() as metadata:
        metadata.has_notice = True
        assert has_notice(metadata.url)
