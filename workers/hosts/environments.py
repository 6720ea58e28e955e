"""The environment of the processes that a worker starts. Its own credentials are not among the variables."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import trainers
from app.retention.host_files import ROW_CACHE
from app.settings import Settings
from trainers.modeling.model_source import OFFLINE
from trainers.rendering.cache.folder import FOLDER_VARIABLE, LIMIT_VARIABLE
from trainers.runtime.redaction import is_secret_variable
from workers.hosts.devices import Devices

INHERITED_VARIABLES = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "LD_LIBRARY_PATH",
    "OMP_NUM_THREADS", "NVIDIA_VISIBLE_DEVICES", "XDG_CACHE_HOME",
)  # fmt: skip
# The operator's settings of libraries: how GPUs are connected, where kernels and models are cached.
INHERITED_PREFIXES = (
    "NCCL_", "GLOO_", "TORCH_", "TORCHINDUCTOR_", "PYTORCH_", "CUDA_", "TRITON_", "HF_",
)  # fmt: skip
ENGINE_PREFIXES = ("VLLM_", "SGLANG_")
# Only a download reaches a network, and only a download has the hub's token.
PROXY_VARIABLES = (
    "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip
NETWORK_VARIABLES = (
    "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET", *PROXY_VARIABLES,
)  # fmt: skip
# The current name of the variable, and the one that torch still reads.
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def program_environment(devices: Devices, reaches_hub: bool = False) -> dict[str, str]:
    """Return the environment variables of a program or engine.

    It reaches no hub, except for the public data of lm-eval's stock tasks: without a token in any case.
    """
    hub = _inherit(name for name in NETWORK_VARIABLES if name != "HF_TOKEN") if reaches_hub else OFFLINE
    return {
        **_inherit([*INHERITED_VARIABLES, *_list_prefixed(INHERITED_PREFIXES)]),
        **hub,
        "TOKENIZERS_PARALLELISM": "false",
        # With mlflow installed for tracking, TRL would import it in every program, which takes a second.
        "DISABLE_MLFLOW_INTEGRATION": "TRUE",
        **devices.environment,
    }


def training_environment(devices: Devices) -> dict[str, str]:
    """Return the variables of a training program on these devices, besides those of every program.

    Rows of changing lengths fragment fixed segments of GPU memory, so that an allocation fails although
    enough is free. Engines do not get the variable: vLLM's sleep mode has an allocator of its own.
    """
    if not devices.gpus or any(name in os.environ for name in ALLOCATOR_VARIABLES):
        return {}
    return {ALLOCATOR_VARIABLES[0]: "expandable_segments:True"}


def engine_environment(devices: Devices) -> dict[str, str]:
    """Return the environment variables of an engine."""
    return program_environment(devices) | {name: os.environ[name] for name in _list_prefixed(ENGINE_PREFIXES)}


def row_cache_environment(settings: Settings) -> dict[str, str]:
    """Return the variables that name the cache of rendered datasets, which the stages of this host share."""
    return {
        FOLDER_VARIABLE: str(settings.data_dir / ROW_CACHE),
        LIMIT_VARIABLE: str(settings.max_row_cache_bytes),
    }


def empty_folder(parent: Path, name: str = ".empty") -> Path:
    """Create the folder in which a program starts, so that no name of a file or module leads anywhere."""
    folder = parent / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def download_environment() -> dict[str, str]:
    """Return the environment variables of a download from the hub."""
    return _inherit([*INHERITED_VARIABLES, *_list_prefixed(("HF_",)), *NETWORK_VARIABLES])


def proxy_environment() -> dict[str, str]:
    """Return the environment variables with which a program reaches an endpoint outside this host."""
    return {name: os.environ[name] for name in PROXY_VARIABLES if name in os.environ}


def _list_prefixed(prefixes: tuple[str, ...]) -> list[str]:
    """Return the variables with these prefixes, without secrets and what only a download has."""
    return [
        name
        for name in os.environ
        if name.startswith(prefixes) and not is_secret_variable(name) and name not in NETWORK_VARIABLES
    ]


def _inherit(names: Iterable[str]) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in names if name in os.environ}
    return inherited | {"PYTHONPATH": _python_path(inherited), "PYTHONUNBUFFERED": "1"}


def _python_path(inherited: dict[str, str]) -> str:
    """Return the path on which a program finds our packages: it starts in an empty folder.

    Installed packages are found by the program's own Python, which may be another one than the worker's.
    """
    root = Path(trainers.__file__).resolve().parents[1]
    own = [str(root)] if (root / "pyproject.toml").is_file() else []
    return os.pathsep.join([*own, *filter(None, [inherited.get("PYTHONPATH")])])
