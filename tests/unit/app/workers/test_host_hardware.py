"""A host serves the queue of its GPUs or its Apple chip, and `cpu`, unless its packages cannot use them."""

import pytest

from app.workers.gpus import Gpu
from app.workers.host_hardware import HostFacts, choose_queues

H200 = [Gpu(index, f"GPU-{index}", "NVIDIA H200", 143771 << 20) for index in range(2)]


def facts(
    system: str = "Linux", machine: str = "x86_64", torch: str | None = "2.13.0", mlx: bool = False
) -> HostFacts:
    return HostFacts(system, machine, torch, mlx)


@pytest.mark.parametrize(
    ("gpus", "host", "queues"),
    [
        (H200, facts(), ["cuda", "cpu"]),
        (H200, facts(torch="2.13.0+cu130"), ["cuda", "cpu"]),
        (H200, facts(torch=None), ["cuda", "cpu"]),
        ([], facts(), ["cpu"]),
        ([], facts("Darwin", "arm64", mlx=True), ["mlx", "cpu"]),
        ([], facts("Darwin", "x86_64", mlx=True), ["cpu"]),
        ([], facts("Linux", "aarch64", mlx=True), ["cpu"]),
    ],
)
def test_the_queues_of_a_host_are_those_of_its_hardware(
    gpus: list[Gpu], host: HostFacts, queues: list[str]
) -> None:
    found = choose_queues(gpus, host)
    assert ([*found.queues], found.unused) == (queues, None)


def test_a_gpu_that_the_installed_torch_cannot_use_is_reported() -> None:
    found = choose_queues(H200, facts(torch="2.13.0+cpu"))
    assert ([*found.queues], found.description) == (["cpu"], "cpu")
    assert "2 × NVIDIA H200, but the installed torch 2.13.0+cpu" in (found.unused or "")


def test_an_apple_chip_without_mlx_is_reported() -> None:
    found = choose_queues([], facts("Darwin", "arm64"))
    assert [*found.queues] == ["cpu"]
    assert "pip install '.[mlx]'" in (found.unused or "")


def test_the_description_names_the_devices() -> None:
    assert choose_queues(H200, facts()).description == "cuda (2 × NVIDIA H200), cpu"
