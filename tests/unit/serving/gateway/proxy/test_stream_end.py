"""Detection of the end of a stream, line by line."""

import pytest

from serving.gateway.proxy.stream_end import DoneMarkerEnd, LastEventEnd, LineBuffer
from serving.http.errors import EngineDisconnected

BROKEN = EngineDisconnected("x")


@pytest.mark.parametrize(
    ("reads", "lines", "remainder"),
    [
        ([b"a\n"], [b"a\n"], b""),
        ([b"a", b"b\n"], [b"", b"ab\n"], b""),
        ([b"a\nb", b"c", b"d\ne"], [b"a\n", b"", b"bcd\n"], b"e"),
        ([b"\n", b"a"], [b"\n", b""], b"a"),
    ],
)
def test_lines_are_complete_however_they_are_read(
    reads: list[bytes], lines: list[bytes], remainder: bytes
) -> None:
    buffer = LineBuffer()
    assert [buffer.take_lines(read) for read in reads] == lines
    assert b"".join(buffer.remainder) == remainder


def test_a_chat_ends_at_its_done_marker_only() -> None:
    end = DoneMarkerEnd(remove_usage=False)
    end.inspect(b'data: {"text": "data: [DONE]"}\n\n')
    assert not end.done
    end.inspect(b"data: [DONE]\n\n")
    assert end.done


def test_a_done_marker_after_an_error_is_removed() -> None:
    end = DoneMarkerEnd(remove_usage=False)
    assert end.inspect(b'data: {"error": {}}\n\ndata: [DONE]\n\n') == b'data: {"error": {}}\n\n'
    assert (end.done, end.failed, end.error_event(BROKEN, b"")) == (False, True, b"")


@pytest.mark.parametrize("kind", ["completed", "incomplete", "failed"])
def test_a_response_ends_with_its_last_event_and_the_data(kind: str) -> None:
    end = LastEventEnd()
    end.inspect(f"event: response.{kind}\n".encode())
    assert not end.done
    end.inspect(b'data: {"type": "x"}\n\n')
    assert (end.done, end.failed) == (True, kind == "failed")


@pytest.mark.parametrize("event", [b'event: error\ndata: {"type": "error"}\n\n', b'data: {"error": {}}\n\n'])
def test_an_error_event_of_the_engine_is_not_repeated(event: bytes) -> None:
    end = LastEventEnd()
    end.inspect(event)
    assert (end.done, end.failed, end.error_event(BROKEN, event)) == (False, True, b"")


def test_only_the_usage_event_is_removed() -> None:
    end = DoneMarkerEnd(remove_usage=True)
    chunk = b'data: {"choices":[{"delta":{"content":"\\"choices\\":[]"}}]}\n\n'
    usage = b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":3}}\n\n'
    assert end.inspect(chunk + usage + b"data: [DONE]\n\n") == chunk + b"data: [DONE]\n\n"
    assert (end.usage, end.done) == (usage, True)


@pytest.mark.parametrize("end_of_line", [b"\n", b"\r\n"])
def test_the_usage_event_is_found_behind_another_without_choices(end_of_line: bytes) -> None:
    end, blank = DoneMarkerEnd(remove_usage=True), end_of_line * 2
    filtered = b'data: {"choices":[],"prompt_filter_results":[],"usage":null}' + blank
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":3}}' + blank
    assert b"prompt_tokens" not in end.inspect(filtered + usage + b"data: [DONE]" + blank)
    assert (b"prompt_tokens" in end.usage, end.done) == (True, True)
