"""The client's view of an engine that is killed with -9 before, within and after its response."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.integration.serving.conftest import BASE_SAYS, Server, gateway_over, one_engine, sdk_of
from tests.integration.serving.gateway.killing_proxy import KillingProxy

PLACES = ["before its head", "before its first chunk", "in the middle", "after its last text"]
PLACES += ["after its usage", "within [DONE]"]
BEFORE_START = PLACES[:2]
REQUEST: dict[str, Any] = {
    "model": "base",
    "messages": [{"role": "user", "content": "hello"}],
    "temperature": 0,
    "stream": True,
    "stream_options": {"include_usage": True},
}
slow = pytest.mark.slow
# test_gateway.py also kills an engine in the middle of a stream, without this proxy.
QUICK = [("hf", BEFORE_START[1]), ("hf", "after its last text")]
CASES = [
    pytest.param(kind, place, id=f"{kind} {place}", marks=[] if (kind, place) in QUICK else slow)
    for kind in ("hf", "mlx")
    for place in PLACES
]


@contextlib.contextmanager
def run_killed_engine(tiny: Path, folder: Path, kind: str, place: str, *others: str) -> Iterator[Server]:
    """Run a gateway to an engine that is killed at this place; it tries the other engines only after it."""
    if kind == "mlx":
        pytest.importorskip("mlx_lm")
    with one_engine(tiny, folder, kind) as engine:
        targets: list[dict[str, Any]] = [{"base_url": KillingProxy(engine, place).url}]
        targets += [{"base_url": url, "share": 1e-12} for url in others]
        with gateway_over([{"name": "base", "targets": targets}], folder) as gateway:
            yield gateway
        assert engine.process.wait(30) == -signal.SIGKILL


def read_stream(sdk: OpenAI) -> tuple[str, openai.APIError | None]:
    """Return the text of the stream, and the error that ended it."""
    text = ""
    try:
        for chunk in sdk.chat.completions.create(**REQUEST):
            text += chunk.choices[0].delta.content or "" if chunk.choices else ""
    except openai.APIError as error:
        return text, error
    return text, None


@pytest.mark.parametrize(("kind", "place"), CASES)
def test_a_stream_of_a_killed_engine_ends_with_an_error(
    tiny: Path, tmp_path: Path, kind: str, place: str
) -> None:
    with run_killed_engine(tiny, tmp_path, kind, place) as gateway, sdk_of(gateway) as sdk:
        text, error = read_stream(sdk)
        assert error is not None
        if place in BEFORE_START:
            assert isinstance(error, openai.InternalServerError)
            assert (error.status_code, error.code, text) == (503, "engine_unavailable", "")
        else:
            assert type(error) is openai.APIError
            assert (error.code, "closed the connection" in error.message) == ("engine_disconnected", True)
            assert BASE_SAYS.startswith(text)
            assert (text == BASE_SAYS) == (place != "in the middle")
        assert f'status="{503 if place in BEFORE_START else 502}"}} 1.0' in gateway.get("/metrics")[1]


@slow
@pytest.mark.parametrize("kind", ["hf", "mlx"])
def test_a_stream_that_was_complete_before_the_kill_has_no_error(
    tiny: Path, tmp_path: Path, kind: str
) -> None:
    with run_killed_engine(tiny, tmp_path, kind, "after [DONE]") as gateway, sdk_of(gateway) as sdk:
        assert read_stream(sdk) == (BASE_SAYS, None)


@slow
@pytest.mark.parametrize("kind", ["hf", "mlx"])
def test_a_response_cut_by_a_kill_is_a_502(tiny: Path, tmp_path: Path, kind: str) -> None:
    with (
        run_killed_engine(tiny, tmp_path, kind, "within a plain response") as gateway,
        sdk_of(gateway) as sdk,
    ):
        with pytest.raises(openai.InternalServerError) as error:
            sdk.chat.completions.create(**REQUEST | {"stream": False, "stream_options": None})
        assert (error.value.status_code, error.value.code) == (502, "engine_disconnected")


@slow
@pytest.mark.parametrize("place", BEFORE_START)
def test_another_engine_responds_for_one_that_is_killed_before_its_first_chunk(
    tiny: Path, tmp_path: Path, engine: Server, place: str
) -> None:
    with run_killed_engine(tiny, tmp_path, "hf", place, engine.url) as gateway, sdk_of(gateway) as sdk:
        assert read_stream(sdk) == (BASE_SAYS, None)
