"""Fifty adapters that are loaded and unloaded under load are never mixed up, and leak no memory."""

import contextlib
import random
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.serving.conftest import Server, serving
from tests.integration.serving.real_vllm import NEEDS_VLLM, process_tree, vllm

ADAPTERS = 50
REQUESTS = 1000
MAX_LOADED = 8
MAX_GROWTH_BYTES = 48 * 1024 * 1024


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["hf", "mlx", pytest.param("vllm", marks=NEEDS_VLLM)])
def test_completions_are_not_mixed_up_and_memory_does_not_grow(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    models = request.getfixturevalue("wide" if kind == "vllm" else "tiny")
    sources = {f"adapter-{n}": ("alpha", "beta")[n % 2] for n in range(ADAPTERS)}
    for name, source in sources.items():
        shutil.copytree(models / source, tmp_path / name)
    with start_engine(kind, models, tmp_path) as server:
        names = random.Random(0).choices(sorted(sources), k=REQUESTS)
        quarter = REQUESTS // 4
        use_adapters(server, tmp_path, sources, names[:quarter])
        before = memory_bytes(server)
        use_adapters(server, tmp_path, sources, names[quarter:])
        grown = memory_bytes(server) - before
    print(f"{kind}: {REQUESTS} requests, {grown / 2**20:.0f} MiB more after the last {REQUESTS - quarter}")
    assert grown < MAX_GROWTH_BYTES


@contextlib.contextmanager
def start_engine(kind: str, models: Path, folder: Path) -> Iterator[Server]:
    """Start an engine that can load eight adapters."""
    if kind == "vllm":
        with vllm(models, "--max-adapters", str(MAX_LOADED)) as server:
            yield server
        return
    arguments = ["--model", str(models / "base"), "--served-name", "base", "--max-adapters", str(MAX_LOADED)]
    with serving(folder / "log", f"serving.engines.{kind}", *arguments) as server:
        yield server.wait_until_ready()


def memory_bytes(server: Server) -> int:
    """Return the resident memory of all processes of the engine."""
    return sum(member.memory_info().rss for member in process_tree(server))


def use_adapters(server: Server, folder: Path, sources: dict[str, str], names: list[str]) -> None:
    """Load the adapters of eight requests, send all at once, and unload them again."""
    with ThreadPoolExecutor(MAX_LOADED) as pool:
        for start in range(0, len(names), MAX_LOADED):
            together = names[start : start + MAX_LOADED]
            for name in set(together):
                request = {"lora_name": name, "lora_path": str(folder / name)}
                assert server.post("/v1/load_lora_adapter", request)[0] == 200
            responses = list(pool.map(lambda name: server.chat(name, max_tokens=4), together))
            assert [response[:3] for response in responses] == [sources[name][:3] for name in together]
            for name in set(together):
                assert server.post("/v1/unload_lora_adapter", {"lora_name": name})[0] == 200
