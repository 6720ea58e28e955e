"""Goal: an engine that hangs ends the run within the time that the config allows, and is gone with it.

Method: programs in the place of an engine that never respond. Whole runs are in test_grpo_engine.py.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.integration.trainers.conftest import list_children
from trainers.configs.engines import EngineKind
from trainers.runtime.errors import EngineFailed
from trainers.training.on_policy import engine_process
from trainers.training.on_policy.engine_process import (
    ChildEngineOptions,
    EngineChild,
    _environment,
    run_engine,
)
from trainers.training.on_policy.engine_sampler import open_sampler

TIMEOUT_SECONDS = 1.0
# Far from the timeout, for a busy host; without one the step would take as long as the engine.
MAX_SECONDS, HANGING_SECONDS = 60, 90


class HangingHandler(BaseHTTPRequestHandler):
    is_over = threading.Event()

    def do_POST(self) -> None:
        self.is_over.wait(HANGING_SECONDS)


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[EngineChild]:
    """Yield an engine that accepts every request and completes none."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), HangingHandler)
    HangingHandler.is_over.clear()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with subprocess.Popen(["sleep", "60"]) as process:
        url = f"http://127.0.0.1:{server.server_port}"
        yield EngineChild(EngineKind.vllm, url, process, tmp_path / "engine-1.log")
        process.kill()
    HangingHandler.is_over.set()
    server.shutdown()
    server.server_close()


def test_a_step_that_the_engine_does_not_complete_ends_in_time(hanging: EngineChild, tmp_path: Path) -> None:
    prompts = [[number] for number in range(3)]
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(process_index=0, is_main_process=False),
        model=SimpleNamespace(training=True),
        state=SimpleNamespace(global_step=3),
        max_completion_length=8,
        temperature=1.0,
        eos_token_ids=[0],
        _tokenize_prompts=lambda given: (given, None, None),
    )
    started = time.monotonic()
    with open_sampler(hanging, tmp_path, 0, TIMEOUT_SECONDS) as sampler:
        sampler.bind(trainer)
        sampler._adapter = "step-3"
        with pytest.raises(
            EngineFailed, match=r"completions of a step within 1 s \(engine_timeout"
        ) as failed:
            sampler.rollout(prompts, trainer)
    assert time.monotonic() - started < MAX_SECONDS
    assert "engine-1.log" in str(failed.value.hint) and "raise engine_timeout_seconds" in str(
        failed.value.hint
    )


def test_an_engine_that_never_gets_ready_is_killed_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (base := tmp_path / "base").mkdir()
    (base / "config.json").write_text('{"model_type": "llama"}')
    program, started = tmp_path / "engine.py", tmp_path / "started"
    program.write_text(f"import time\nopen({str(started)!r}, 'w')\ntime.sleep(999)")
    command = [sys.executable, str(program)]
    options = ChildEngineOptions(EngineKind.vllm, command, str(base), 64, "float32", 8, 0.3, "cpu", 600.0)
    # The time is over once the engine has started, however long a busy host takes for that.
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 1000 * started.exists(), sleep=time.sleep)
    monkeypatch.setattr(engine_process, "time", clock)
    failure = pytest.raises(EngineFailed, match=r"The engine vllm was not ready after 1\d\d\d s")
    with failure as failed, run_engine(options, tmp_path):
        pass
    assert "raise engine_timeout_seconds" in str(failed.value.hint)
    assert not list_children(str(program))


@pytest.mark.parametrize(
    ("kind", "expected"), [(EngineKind.vllm, "max_split_size_mb:512"), (EngineKind.hf, None)]
)
def test_vllm_does_not_inherit_growing_segments(
    kind: EngineKind, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = "expandable_segments:True,max_split_size_mb:512"
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", own)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    environment = _environment(kind)
    assert environment["PYTORCH_ALLOC_CONF"] == (expected or own)
    assert ("PYTORCH_CUDA_ALLOC_CONF" in environment) == (expected is None)
