"""How streams end, looked at line by line."""

import pytest

from serving.gateway.stream_end import DoneMarkerEnd, LastEventEnd, LineBuffer
from serving.http.errors import EngineDisconnected

BROKEN = EngineDisconnected("x")


@pytest.mark.parametrize(
    ("reads", "passed", "rest"),
    [
        ([b"a\n"], [b"a\n"], b""),
        ([b"a", b"b\n"], [b"", b"ab\n"], b""),
        ([b"a\nb", b"c", b"d\ne"], [b"a\n", b"", b"bcd\n"], b"e"),
        ([b"\n", b"a"], [b"\n", b""], b"a"),
    ],
)
def test_lines_pass_whole_however_they_come(reads: list[bytes], passed: list[bytes], rest: bytes) -> None:
    lines = LineBuffer()
    assert [lines.take(read) for read in reads] == passed
    assert b"".join(lines.rest) == rest


def test_a_chat_is_done_at_its_mark_alone() -> None:
    ending = DoneMarkerEnd(drops_usage=False)
    ending.look(b'data: {"text": "data: [DONE]"}\n\n')
    assert not ending.done
    ending.look(b"data: [DONE]\n\n")
    assert ending.done


def test_a_mark_after_an_error_of_the_engine_does_not_pass() -> None:
    ending = DoneMarkerEnd(drops_usage=False)
    assert ending.look(b'data: {"error": {}}\n\ndata: [DONE]\n\n') == b'data: {"error": {}}\n\n'
    assert (ending.done, ending.failed, ending.broken(BROKEN, b"")) == (False, True, b"")


@pytest.mark.parametrize("kind", ["completed", "incomplete", "failed"])
def test_a_response_is_done_with_its_last_event_and_its_data(kind: str) -> None:
    ending = LastEventEnd()
    ending.look(f"event: response.{kind}\n".encode())
    assert not ending.done
    ending.look(b'data: {"type": "x"}\n\n')
    assert (ending.done, ending.failed) == (True, kind == "failed")


@pytest.mark.parametrize("told", [b'event: error\ndata: {"type": "error"}\n\n', b'data: {"error": {}}\n\n'])
def test_an_error_that_the_engine_tells_in_a_response_is_not_told_twice(told: bytes) -> None:
    ending = LastEventEnd()
    ending.look(told)
    assert (ending.done, ending.failed, ending.broken(BROKEN, told)) == (False, True, b"")


def test_the_event_that_tells_tokens_is_dropped_alone() -> None:
    ending = DoneMarkerEnd(drops_usage=True)
    chunk = b'data: {"choices":[{"delta":{"content":"\\"choices\\":[]"}}]}\n\n'
    usage = b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":3}}\n\n'
    assert ending.look(chunk + usage + b"data: [DONE]\n\n") == chunk + b"data: [DONE]\n\n"
    assert (ending.usage, ending.done) == (usage, True)
