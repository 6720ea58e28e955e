"""Kernels of a folder, in place of operations of a model whose classes are listed here.

The folder has the layout that the package `kernels` builds: a Python package with a module `layers`. The
operator has allowed the folder; its code runs in the training program.
"""

import importlib.util
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any, Final

import torch
from transformers import PreTrainedModel

from trainers.runtime.errors import ConfigInvalid, first_line

# Classes that compute the same, by the name of the kernel. Gemma's norm adds 1 to its weight and is not one.
REPLACED_CLASSES: Final = {
    "RMSNorm": frozenset(
        {"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "Phi3RMSNorm", "SmolLM3RMSNorm"}
    ),
    "SwiGLUMLP": frozenset({"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP", "SmolLM3MLP"}),
}
ROTARY: Final = "apply_rotary_pos_emb"
ROTARY_ARCHITECTURES: Final = frozenset({"llama", "mistral", "qwen2", "qwen3", "phi3", "smollm3"})
SILU: Final = frozenset({"silu", "swish"})
LAYERS: Final = "layers"


class KernelsUnsuitable(ConfigInvalid):
    """Kernels that cannot be loaded, do not fit the model, or compute something else."""


def load_kernel_folder(folder: Path) -> ModuleType:
    """Return the module `layers` of a package of kernels; raises KernelsUnsuitable."""
    if not (folder / "__init__.py").is_file():
        raise KernelsUnsuitable(
            f"kernels.folder {folder} is not a Python package: it has no __init__.py.",
            "Name the folder of one variant of a kernel, such as build/torch-universal/name.",
        )
    # The name contains the path, since two packages of kernels may have one name.
    name = f"tunesmith_kernels_{sha256(str(folder).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None, "the file exists"
    package = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(package)
        return importlib.import_module(f"{name}.{LAYERS}")
    except (ImportError, SyntaxError, AttributeError, NameError, OSError, RuntimeError) as error:
        raise KernelsUnsuitable(
            f"kernels.folder {folder} cannot be loaded: {first_line(error)}",
            f"Use a package with a module {LAYERS} that was built for torch {torch.__version__} and this "
            "host.",
        ) from error


def hash_folder(folder: Path) -> str:
    """Return a hash of the names and contents of the files, which the run's events contain."""
    digest = sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def replace_from_folder(model: PreTrainedModel, layers: ModuleType) -> dict[str, int]:
    """Put the kernels into the model and return how many places each has; raises KernelsUnsuitable."""
    offered = [name for name in (*REPLACED_CLASSES, ROTARY) if hasattr(layers, name)]
    if not offered:
        raise KernelsUnsuitable(
            f"The kernels have none of {', '.join(REPLACED_CLASSES)} and {ROTARY} in their module {LAYERS}.",
            "Name a folder of kernels that has one of them, or omit kernels.",
        )
    places = {name: _replace(model, name, getattr(layers, name)) for name in offered}
    if missing := [name for name, count in places.items() if not count]:
        model_type = model.config.model_type
        raise KernelsUnsuitable(
            f"The kernels for {', '.join(missing)} fit no layer of the architecture {model_type}.",
            f"Use them with one of {', '.join(sorted(ROTARY_ARCHITECTURES))}, or omit kernels.",
        )
    return places


def _replace(model: PreTrainedModel, name: str, kernel: Any) -> int:
    if name == ROTARY:
        return _replace_rotary(model, kernel)
    if name == "SwiGLUMLP" and getattr(model.config.get_text_config(), "hidden_act", None) not in SILU:
        return 0
    found = [module for module in model.modules() if type(module).__name__ in REPLACED_CLASSES[name]]
    for module in found:
        module.forward = MethodType(kernel.forward, module)
    return len(found)


def _replace_rotary(model: PreTrainedModel, kernel: Callable[..., Any]) -> int:
    """Replace the function of the model's own module, which all of its layers call."""
    source = sys.modules[type(model).__module__]
    if model.config.model_type not in ROTARY_ARCHITECTURES or not hasattr(source, ROTARY):
        return 0
    setattr(source, ROTARY, kernel)
    return int(model.config.num_hidden_layers)
