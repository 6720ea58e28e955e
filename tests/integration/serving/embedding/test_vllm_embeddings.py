"""The real vLLM embeds tiny models as our own engine does; `TUNESMITH_ENGINE_COMMANDS` names it.

Goal: the command that a deployment becomes starts vLLM for an encoder, a decoder, and a model whose pooling
the deployment names. Method: the parity check, whose reference is our own engine in fp32.
"""

from pathlib import Path

import pytest

from serving.parity.__main__ import run_embedding_comparison
from tests.integration.serving.conftest import serving, wait_for
from tests.integration.serving.embedding.tiny_models import build_models
from tests.integration.serving.real_vllm import ENGINE, NEEDS_VLLM, PROGRAM, START_SECONDS
from trainers.configs.engines import EngineTask, Pooling

pytestmark = [pytest.mark.slow, NEEDS_VLLM]


@pytest.mark.parametrize(("name", "pooling"), [("bert", None), ("qwen", None), ("bare", Pooling.last)])
def test_vllm_embeds_as_our_own_engine_does(tmp_path: Path, name: str, pooling: Pooling | None) -> None:
    build_models(tmp_path)
    options = ["--engine", "vllm", "--program", " ".join(PROGRAM), "--model", str(tmp_path / name)]
    options += ["--served-name", "base", "--task", "embed", *(["--pooling", pooling] if pooling else [])]
    options += ["--dtype", "float32", "--cpu-cache-gib", "1", "--enforce-eager"]
    with serving(tmp_path / "vllm.log", "serving", *options) as server:
        wait_for(lambda: ENGINE.is_healthy(server.url) or server.process.poll() is not None, START_SECONDS)
        assert server.process.poll() is None, server.log.read_text()
        ENGINE.probe(server.url, "base", 300, EngineTask.embed)
        base = str(tmp_path / name)
        report = run_embedding_comparison(ENGINE, server.url, "base", base, pooling, "float32")
    assert report["passed"], report["difference"]
