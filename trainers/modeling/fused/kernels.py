"""Kernels in place of a model's norms, SwiGLU and rotary positions, compared with what they replace.

A kernel that computes something else would train another model without any error, so a small model of the
same architecture is computed with and without them first.
"""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import is_liger_kernel_available

from trainers.configs.backends.kernels import KernelFolder, KernelPackage
from trainers.modeling.fused.kernel_folder import (
    KernelsUnsuitable,
    hash_folder,
    load_kernel_folder,
    replace_from_folder,
)
from trainers.modeling.fused.small_model import VOCABULARY, build_small_model
from trainers.runtime.errors import DeviceUnavailable

Replace = Callable[[PreTrainedModel], dict[str, int]]
LIGER_OPERATIONS: Final = {"rope": True, "rms_norm": True, "swiglu": True, "geglu": True}
# TRL computes the loss in chunks, which needs no kernel.
LIGER_LOSSES: Final = {"cross_entropy": False, "fused_linear_cross_entropy": False}
MAX_ERRORS: Final = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
OMIT_HINT: Final = "Omit kernels"


def check_kernels(kernels: KernelPackage | KernelFolder, device: torch.device) -> None:
    """Raise DeviceUnavailable if this host cannot run the kernels, or has not installed them."""
    if kernels is not KernelPackage.liger:
        return
    if device.type != "cuda":
        raise DeviceUnavailable(
            f"kernels is liger, whose Triton kernels need a GPU, but the stage runs on {device.type}.",
            f"{OMIT_HINT}, or run the stage on a host with a GPU.",
        )
    if not is_liger_kernel_available():
        raise DeviceUnavailable(
            "kernels is liger, but the package liger-kernel is not installed.",
            f"{OMIT_HINT}, or install the extra `liger` on the worker.",
        )


def use_kernels(
    model: PreTrainedModel, kernels: KernelPackage | KernelFolder, device: torch.device, dtype: torch.dtype
) -> str | None:
    """Put the kernels into the model, once they are proved; return a notice of it, or None without kernels.

    Raises KernelsUnsuitable.
    """
    replacement = make_replacement(kernels, model.config)
    if replacement is None:
        return None
    replace, description = replacement
    prove_replacement(replace, model.config, device, dtype)
    places = ", ".join(f"{count} × {name}" for name, count in replace(model).items())
    return (
        f"Kernels of {description} replace operations of the model: {places}. Outputs and gradients of a "
        "small model were the same as without them."
    )


def make_replacement(
    kernels: KernelPackage | KernelFolder, model: PreTrainedConfig
) -> tuple[Replace, str] | None:
    """Return the function that puts the kernels into a model, and their description; None for no kernels.

    Raises KernelsUnsuitable.
    """
    if isinstance(kernels, KernelFolder):
        folder = Path(kernels.folder)
        layers = load_kernel_folder(folder)
        description = f"the folder {folder} (sha256 {hash_folder(folder)[:16]})"
        return (lambda target: replace_from_folder(target, layers)), description
    if kernels is KernelPackage.none:
        return None
    return _replace_with_liger(model), f"liger-kernel {version('liger-kernel')}"


def prove_replacement(
    replace: Replace, model: PreTrainedConfig, device: torch.device, dtype: torch.dtype
) -> None:
    """Raise KernelsUnsuitable unless a small model has the same outputs and gradients with the kernels."""
    small = build_small_model(model, "eager", device, dtype)
    if small is None:
        raise KernelsUnsuitable(
            f"The kernels could not be compared with the layers of the architecture {model.model_type}: its "
            "layers are too large to be tried quickly.",
            f"{OMIT_HINT} for this model.",
        )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for parameter in small.parameters():
            # The weights of norms are all 1 at first, and a kernel may ignore them.
            if parameter.dim() == 1:
                parameter += torch.randn_like(parameter) / 4
    expected, called = _compute(small)
    if not any(replace(small).values()):
        raise KernelsUnsuitable(
            f"The kernels replace no layer of the architecture {model.model_type}.",
            f"{OMIT_HINT} for this model.",
        )
    found, called_now = _compute(small)
    if passed_by := sorted({name.rpartition(".")[2] for name in called - called_now}):
        raise KernelsUnsuitable(
            f"The kernels read the weights of {', '.join(passed_by)} without calling these layers, so that "
            "adapters of them would have no effect.",
            f"{OMIT_HINT}, or use kernels that call the layers.",
        )
    for name, value in expected.items():
        error = float((found[name].float() - value.float()).norm() / value.float().norm().clamp(min=1e-12))
        # A comparison with NaN is false.
        if not error <= MAX_ERRORS[dtype]:
            raise KernelsUnsuitable(
                f"The kernels do not compute what the layers of {model.model_type} compute: {name} differs "
                f"by {error:.2%} in {dtype}.",
                f"{OMIT_HINT}, or use another version of them.",
            )


def _compute(model: PreTrainedModel) -> tuple[dict[str, torch.Tensor], set[str]]:
    """Return the logits and gradients of a batch of two rows, and the names of the linear layers called."""
    model.zero_grad()
    called: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    tokens = torch.arange(2 * 24, device=model.device).reshape(2, 24) * 7 % VOCABULARY
    logits = model(input_ids=tokens, use_cache=False).logits.float()
    logits.logsumexp(-1).mean().add(logits.square().mean()).backward()
    for hook in hooks:
        hook.remove()
    gradients = {
        f"the gradient of {name}": parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return {"the output": logits.detach(), **gradients}, called


def _replace_with_liger(model: PreTrainedConfig) -> Replace:
    """Return the function of liger-kernel for an architecture; it ignores those that it does not know."""
    from liger_kernel.transformers.monkey_patch import (
        MODEL_TYPE_TO_APPLY_LIGER_FN,
        _apply_liger_kernel_to_instance,
    )

    if model.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise KernelsUnsuitable(
            f"kernels is liger, which has none for the architecture {model.model_type}.",
            f"{OMIT_HINT}; it has kernels for {', '.join(sorted(MODEL_TYPE_TO_APPLY_LIGER_FN))}.",
        )

    def replace(target: PreTrainedModel) -> dict[str, int]:
        before = _own_forwards(target)
        options: dict[str, Any] = {**LIGER_OPERATIONS, **LIGER_LOSSES}
        _apply_liger_kernel_to_instance(model=target, **options)
        return {"layers": len(_own_forwards(target) - before)}

    return replace


def _own_forwards(model: PreTrainedModel) -> set[str]:
    return {name for name, module in model.named_modules() if "forward" in vars(module)}
