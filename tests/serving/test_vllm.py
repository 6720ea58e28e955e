"""The real vLLM on tiny models: `TUNESMITH_ENGINE_PROGRAMS` names it, or it is on PATH."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
from openai import OpenAI
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from serving.engines import EngineRefused, find_engine
from tests.services import free_port
from workers import process

from .conftest import BASE_SAYS, ENVIRONMENT, Server, gateway_over, serving, wait_for

PROGRAM = json.loads(os.environ.get("TUNESMITH_ENGINE_PROGRAMS", "{}")).get("vllm", ["vllm", "serve"])
START_SECONDS = 600.0
# vLLM reads a prompt in blocks and in its own order of sums; both sides compute in fp32.
TOLERANCE = 2e-3
MESSAGES = [{"role": "user", "content": "안녕하세요"}]
ENGINE = find_engine("vllm")

pytestmark = [
    pytest.mark.slow,
    # PEFT's own use of transformers.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.timeout(1200),
    pytest.mark.skipif(shutil.which(PROGRAM[0]) is None, reason="vLLM is not installed"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, `alpha`, and `beta` with a template of its own; vLLM's CPU kernels begin at 32 a head."""
    folder = tmp_path_factory.mktemp("vllm")
    program = Path(__file__).with_name("make_tiny.py")
    subprocess.run([sys.executable, program, folder, "32"], env=ENVIRONMENT, check=True, capture_output=True)
    plain = folder / "plain"
    plain.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(folder / "beta" / name, plain / name)
    return folder


@contextlib.contextmanager
def vllm(models: Path, *arguments: str) -> Iterator[Server]:
    """vLLM as `python -m serving` starts it, without compiling what a test uses once."""
    command = ["--engine", "vllm", "--program", " ".join(PROGRAM), "--model", str(models / "base")]
    command += ["--served-name", "base", "--max-model-len", "512", "--dtype", "float32"]
    command += ["--cpu-cache-gib", "1", "--enforce-eager", *arguments]
    with serving(models / f"{time.monotonic_ns()}.log", "serving", *command) as server:
        wait_for(lambda: ENGINE.is_up(server.url) or server.process.poll() is not None, START_SECONDS)
        assert server.process.poll() is None, server.log.read_text()
        # The first request waits for kernels to be made.
        wait_for(lambda: server.post("/v1/completions", {"model": "base", "prompt": "1"})[0] == 200, 300)
        yield server


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Server]:
    """The base with `alpha` from the start."""
    with vllm(models, "--adapter", f"alpha={models / 'alpha'}") as server:
        yield server


def test_an_adapter_comes_and_goes_while_it_serves(server: Server, models: Path) -> None:
    assert ENGINE.models(server.url) == ["base", "alpha"]
    ENGINE.load_adapter(server.url, "plain", str(models / "plain"))
    with pytest.raises(EngineRefused, match="has already been loaded"):
        ENGINE.load_adapter(server.url, "plain", str(models / "plain"))
    ENGINE.probe(server.url, "plain")
    ENGINE.unload_adapter(server.url, "plain")
    assert ENGINE.models(server.url) == ["base", "alpha"]
    with pytest.raises(EngineRefused, match="404"):
        ENGINE.probe(server.url, "plain")
    with pytest.raises(EngineRefused, match="404"):
        ENGINE.unload_adapter(server.url, "plain")


def test_what_is_no_adapter_is_refused_and_the_engine_lives(server: Server, models: Path) -> None:
    with pytest.raises(EngineRefused, match="No adapter found"):
        ENGINE.load_adapter(server.url, "nothing", str(models / "base"))
    assert server.chat("base") == BASE_SAYS


def test_chats_through_the_gateway_reach_the_named_adapter(server: Server, models: Path) -> None:
    routes = [{"name": name, "base_url": server.url} for name in ("base", "alpha")]
    with gateway_over(routes, models) as gateway:
        assert gateway.chat("base") == BASE_SAYS
        with OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=60) as sdk:
            stream = sdk.chat.completions.create(
                model="alpha",
                messages=MESSAGES,  # type: ignore[arg-type]
                temperature=0,
                stream=True,
            )
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert text.startswith("alpha answers")
        assert gateway.post("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "/x"})[0] == 404


@pytest.mark.parametrize("name", ["base", "alpha"])
def test_tokens_and_their_scores_are_those_of_transformers_and_peft(
    server: Server, models: Path, name: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models / "base")
    prompt = ENGINE.render(server.url, name, MESSAGES)
    assert prompt == tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    ids = [*prompt, *tokenizer("alpha answers, 알파가 답한다.")["input_ids"]]
    expected = trained_scores(models, name, ids)
    assert ENGINE.score(server.url, name, ids) == pytest.approx(expected, abs=TOLERANCE)


def test_an_engine_renders_with_the_template_that_its_adapter_was_trained_with(models: Path) -> None:
    with vllm(models, "--adapter", f"beta={models / 'beta'}") as server:
        tokenizer = AutoTokenizer.from_pretrained(models / "beta")
        expected = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
        assert ENGINE.render(server.url, "beta", MESSAGES) == expected
        assert server.chat("beta").startswith("beta answers")


def test_sigterm_lets_a_running_answer_finish_and_leaves_nothing(models: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "serving", "--engine", "vllm", "--program", " ".join(PROGRAM)]
    command += ["--model", str(models / "base"), "--port", str(port), "--max-model-len", "512"]
    command += ["--cpu-cache-gib", "1", "--dtype", "float32", "--enforce-eager"]
    child = process.start(command, log=tmp_path / "log", environment=ENVIRONMENT, seconds=START_SECONDS)
    wait_for(lambda: ENGINE.is_up(f"http://127.0.0.1:{port}") or child.wait(0) is not None, START_SECONDS)
    family = psutil.Process(child.pid).children(recursive=True)
    assert len(family) > 2
    assert {c.laddr.ip for p in family for c in p.net_connections() if c.status == "LISTEN"} == {"127.0.0.1"}
    server = Server(child, f"http://127.0.0.1:{port}", tmp_path / "log")  # type: ignore[arg-type]
    body = {"model": str(models / "base"), "prompt": "1", "max_tokens": 200, "ignore_eos": True}
    assert server.post("/v1/completions", body)[0] == 200
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(server.post, "/v1/completions", body)
        wait_for(lambda: "num_requests_running{" in (text := server.get("/metrics")[1]) and running(text) > 0)
        psutil.Process(child.pid).children()[0].terminate()
        assert child.wait(ENGINE.stop_seconds) is not None
        assert asked.result()[0] == 200
    wait_for(lambda: not any(map(lives, family)))


def test_sleep_mode_is_refused_where_there_is_no_gpu(models: Path) -> None:
    command = [sys.executable, "-m", "serving", "--engine", "vllm", "--program", " ".join(PROGRAM)]
    command += ["--model", str(models / "base"), "--port", str(free_port()), "--sleep-mode"]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert ended.returncode != 0
    assert "Sleep mode is not supported on current platform" in ended.stderr + ended.stdout


def running(metrics: str) -> float:
    """Requests under way, by vLLM's own count."""
    (line,) = [line for line in metrics.splitlines() if line.startswith("vllm:num_requests_running{")]
    return float(line.split()[-1])


def lives(process: psutil.Process) -> bool:
    """Whether it is more than an entry that nobody has read yet."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def trained_scores(models: Path, name: str, ids: Sequence[int]) -> list[float]:
    """Log-probabilities of the tokens after the first by the model as it was trained."""
    network = AutoModelForCausalLM.from_pretrained(models / "base", dtype=torch.float32)
    if name != "base":
        network = PeftModel.from_pretrained(network, models / name)
    with torch.no_grad():
        scores_tv = network.eval()(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [float(scores_tv[t, token]) for t, token in enumerate(ids[1:])]
