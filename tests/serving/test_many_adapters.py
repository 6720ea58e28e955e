"""Fifty adapters that come and go under load are never mixed up, and leave no memory behind."""

import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from .conftest import Server, serving

ADAPTERS = 50
REQUESTS = 1000
HELD = 8
MOST_GROWTH_BYTES = 48 * 1024 * 1024


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["hf", "mlx"])
def test_no_answer_is_anothers_and_memory_does_not_grow(tiny: Path, tmp_path: Path, kind: str) -> None:
    says = {f"adapter-{n}": ("alpha", "beta")[n % 2] for n in range(ADAPTERS)}
    for name, kin in says.items():
        shutil.copytree(tiny / kin, tmp_path / name)
    arguments = ["--model", str(tiny / "base"), "--served-name", "base", "--max-adapters", str(HELD)]
    with serving(tmp_path / "log", f"serving.engines.{kind}", *arguments) as server:
        server.wait_until_ready()
        names = random.Random(0).choices(sorted(says), k=REQUESTS)
        quarter = REQUESTS // 4
        used(server, tmp_path, says, names[:quarter])
        before = psutil.Process(server.process.pid).memory_info().rss
        used(server, tmp_path, says, names[quarter:])
        grown = psutil.Process(server.process.pid).memory_info().rss - before
    print(f"{kind}: {REQUESTS} requests, {grown / 2**20:.0f} MiB more after the last {REQUESTS - quarter}")
    assert grown < MOST_GROWTH_BYTES


def used(server: Server, folder: Path, says: dict[str, str], names: list[str]) -> None:
    """Load the adapters of eight requests, ask all at once, and unload them again."""
    with ThreadPoolExecutor(HELD) as pool:
        for start in range(0, len(names), HELD):
            together = names[start : start + HELD]
            for name in set(together):
                asked = {"lora_name": name, "lora_path": str(folder / name)}
                assert server.post("/v1/load_lora_adapter", asked)[0] == 200
            answers = list(pool.map(lambda name: server.chat(name, max_tokens=4), together))
            assert [answer[:3] for answer in answers] == [says[name][:3] for name in together]
            for name in set(together):
                assert server.post("/v1/unload_lora_adapter", {"lora_name": name})[0] == 200
