"""The environment variables of programs: the operator's settings of libraries, and none of their secrets."""

import pytest

from app.workers.gpus import Gpu
from workers.hosts.devices import NO_DEVICES, Devices
from workers.hosts.environments import engine_environment, program_environment, training_environment

SETTINGS = {
    "NCCL_P2P_DISABLE": "1",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "0",
    "CUDA_LAUNCH_BLOCKING": "1",
    "TRITON_CACHE_DIR": "/cache/triton",
    "XDG_CACHE_HOME": "/cache",
    "HF_HUB_CACHE": "/cache/hub",
}
ONE_GPU = Devices((Gpu(index=1, uuid="GPU-1", name="H100", memory_bytes=1 << 30),))


def test_a_program_inherits_the_settings_of_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    assert program_environment(NO_DEVICES).items() >= SETTINGS.items()


@pytest.mark.parametrize("name", ["HF_TOKEN", "HF_TOKEN_PATH", "HF_ENDPOINT", "NCCL_SECRET", "VLLM_API_KEY"])
def test_no_program_inherits_a_secret_or_an_address_by_its_prefix(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "canary")
    assert "canary" not in str(program_environment(NO_DEVICES)) + str(engine_environment(NO_DEVICES))


def test_the_gpus_of_a_run_are_those_it_holds_whatever_the_worker_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert program_environment(ONE_GPU)["CUDA_VISIBLE_DEVICES"] == "1"
    assert program_environment(NO_DEVICES)["CUDA_VISIBLE_DEVICES"] == ""


def test_an_engine_inherits_the_settings_of_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "WARNING")
    assert engine_environment(NO_DEVICES)["VLLM_LOGGING_LEVEL"] == "WARNING"
    assert "VLLM_LOGGING_LEVEL" not in program_environment(NO_DEVICES)


def test_training_on_a_gpu_uses_expandable_segments_unless_the_operator_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert training_environment(NO_DEVICES) == {}
    assert training_environment(ONE_GPU) == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512")
    assert training_environment(ONE_GPU) == {}
