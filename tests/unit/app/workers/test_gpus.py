"""GPUs are found in the output of `nvidia-smi`, odd lines included, and limited by CUDA_VISIBLE_DEVICES."""

import logging
from pathlib import Path

import pytest

from app.workers.gpus import Gpu, GpuUse, find_gpus, parse_gpu_use, parse_gpus, select_visible

H200 = "0, GPU-11111111-aaaa, 143771, Disabled, NVIDIA H200"
LISTING = """\
GPU 0: NVIDIA H200 (UUID: GPU-11111111-aaaa)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-22222222-bbbb)
  MIG 1g.5gb      Device  0: (UUID: MIG-33333333-cccc)
  MIG 1c.3g.20gb  Device  1: (UUID: MIG-GPU-22222222-bbbb/7/0)
"""
MIG_TABLE = f"{H200}\n1, GPU-22222222-bbbb, 40960, Enabled, NVIDIA A100-SXM4-40GB"
FOUR = [Gpu(index, f"GPU-{index}0-x", "H200", 1) for index in range(4)]


@pytest.mark.parametrize("memory", ["[N/A]", "[Not Supported]", "Unknown Error", ""])
def test_a_gpu_without_a_memory_size_is_used(memory: str) -> None:
    (gpu,) = parse_gpus(f"0, GPU-1, {memory}, [N/A], NVIDIA GB10", "")
    assert (gpu.uuid, gpu.memory_bytes) == ("GPU-1", None)


@pytest.mark.parametrize(
    "line",
    [
        "Unable to determine the device handle for GPU0000:0B:00.0: GPU is lost",
        "[N/A], GPU-2, 1, Disabled, H200",
        "1, [Unknown Error], 1, Disabled, H200",
        "1, GPU-2",
        "\N{REPLACEMENT CHARACTER}",
    ],
)
def test_an_odd_line_is_reported_and_the_other_gpus_are_used(
    line: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert [gpu.index for gpu in parse_gpus(f"{line}\n{H200}\n\n", "")] == [0]
    assert line in caplog.text


def test_mig_devices_take_the_place_of_their_gpu() -> None:
    whole, small, large = parse_gpus(MIG_TABLE, LISTING)
    assert (whole.uuid, whole.memory_bytes, whole.is_mig_device) == ("GPU-11111111-aaaa", 143771 << 20, False)
    assert (small.uuid, small.memory_bytes, small.is_mig_device) == ("MIG-33333333-cccc", 5 << 30, True)
    assert (large.uuid, large.memory_bytes) == ("MIG-GPU-22222222-bbbb/7/0", 20 << 30)


def test_a_gpu_in_mig_mode_without_devices_is_reported_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    assert [gpu.index for gpu in parse_gpus(MIG_TABLE, "")] == [0]
    assert "GPU-22222222-bbbb" in caplog.text


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("2,0", [2, 0]),
        (" 1 , 3 ", [1, 3]),
        ("GPU-20-x,GPU-1", [2, 1]),
        ("-1", []),
        ("NoDevFiles", []),
        ("1,-1,2", [1]),
        ("0,9,1", [0]),
        ("1,1", [1]),
        ("GPU-", []),
        ("MIG-1", []),
    ],
)
def test_cuda_visible_devices_limits_the_gpus(visible: str | None, expected: list[int]) -> None:
    assert [gpu.index for gpu in select_visible(FOUR, visible)] == expected


@pytest.mark.parametrize(
    ("visible", "expected"),
    [("MIG-33333333-cccc", ["5g"]), ("1", ["5g", "20g"]), ("GPU-2222", ["5g", "20g"]), ("0", ["whole"])],
)
def test_cuda_visible_devices_names_mig_devices_or_their_gpu(visible: str, expected: list[str]) -> None:
    names = {"MIG-33333333-cccc": "5g", "MIG-GPU-22222222-bbbb/7/0": "20g", "GPU-11111111-aaaa": "whole"}
    assert [names[gpu.uuid] for gpu in select_visible(parse_gpus(MIG_TABLE, LISTING), visible)] == expected


def test_an_element_that_is_no_gpu_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    select_visible(FOUR, "0,GPU-77")
    assert "'GPU-77' is not a GPU here" in caplog.text


def test_a_failing_nvidia_smi_is_reported_and_a_missing_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_gpus(None) == [] and caplog.records == []
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho NVIDIA-SMI has failed because it cannot talk to the driver\nexit 9\n")
    program.chmod(0o755)
    assert find_gpus(None) == []
    assert "failed with status 9" in caplog.text and caplog.records[0].levelno == logging.WARNING


def test_the_use_of_gpus_is_read_as_far_as_it_is_known() -> None:
    table = "GPU-1, 1024, 37\nGPU-2, [N/A], [Not Supported]\nGPU-3, 1\nUnable to determine the device\n"
    assert parse_gpu_use(table) == {"GPU-1": GpuUse(1 << 30, 37), "GPU-2": GpuUse(None, None)}
