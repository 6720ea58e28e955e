"""The implementation of attention for a model, a device and a precision."""

from typing import Final

import torch
from transformers import PreTrainedConfig
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from trainers.configs.training import Attention, Precision
from trainers.modeling.architecture import list_attention
from trainers.modeling.attention.varlen import explain_varlen_refusal, has_varlen_kernel
from trainers.runtime.errors import ConfigInvalid, DeviceUnavailable

FLASH_PACKAGES: Final = {
    Attention.flash_attention_3: is_flash_attn_3_available,
    Attention.flash_attention_2: is_flash_attn_2_available,
}
# FlashAttention 3 is written for Hopper; FlashAttention 2 and torch's own kernel need Ampere.
MIN_CAPABILITIES: Final = {Attention.flash_attention_3: (9, 0), Attention.flash_attention_2: (8, 0)}
# Those that separate the rows of a sequence by their boundaries, without a mask.
BOUNDARY_ATTENTION: Final = frozenset({*FLASH_PACKAGES, Attention.varlen})


class AttentionUnsupported(ConfigInvalid):
    """The architecture or the precision does not have the attention that the config names."""


def pick_attention(
    attention: Attention, device: torch.device, model: PreTrainedConfig, precision: Precision = Precision.auto
) -> str:
    """Resolve `auto` to the fastest attention that is there for the model, the device and the precision.

    On a GPU in 16 bits these are FlashAttention 3 and 2, if a package is installed, and torch's
    variable-length kernel; then torch's attention with a mask, and eager. Raises AttentionUnsupported if the
    model or the precision does not have the named attention, and DeviceUnavailable if this host does not.
    """
    offered = list_attention(model)
    if attention is Attention.auto:
        fused = _list_fused(device) if precision is not Precision.fp32 else []
        wanted = [*fused, Attention.sdpa, Attention.eager]
        return next(found for found in wanted if found in offered).value
    if attention not in offered:
        names = ", ".join(offered)
        reason = explain_varlen_refusal(model) if attention is Attention.varlen else None
        raise AttentionUnsupported(
            f"attention is {attention}, which the architecture {model.model_type} does not have; "
            f"it has {names}{f'. The model {reason}' if reason else ''}.",
            f"Set attention to auto or one of {names}.",
        )
    if attention in BOUNDARY_ATTENTION:
        _check_fused(attention, device, precision)
    return attention.value


def describe_package(attention: str) -> str | None:
    """Return a notice that the attention comes from an installed package, or None if torch computes it."""
    if attention not in FLASH_PACKAGES:
        return None
    package = "flash-attn" if FLASH_PACKAGES[Attention(attention)]() else "kernels"
    return (
        f"Attention is computed by {attention} of the installed package {package}. "
        "Set attention to varlen to use torch's own kernel."
    )


def _list_fused(device: torch.device) -> list[Attention]:
    if device.type != "cuda":
        return []
    capability = torch.cuda.get_device_capability(device)
    packages = [
        name
        for name, is_installed in FLASH_PACKAGES.items()
        if capability >= MIN_CAPABILITIES[name] and is_installed()
    ]
    return [*packages, *([Attention.varlen] if has_varlen_kernel(device) else [])]


def _check_fused(attention: Attention, device: torch.device, precision: Precision) -> None:
    """Raise an error if the kernel is not there; on a CPU, varlen has a reference implementation."""
    if device.type == "cuda" and precision is Precision.fp32:
        raise AttentionUnsupported(
            f"attention is {attention}, whose kernel computes 16 bits only, but precision is fp32.",
            "Set attention to auto or sdpa, or precision to auto.",
        )
    if attention is Attention.varlen:
        if device.type == "cuda" and not has_varlen_kernel(device):
            raise DeviceUnavailable(
                "attention is varlen, whose kernel needs torch 2.11 and an NVIDIA GPU of compute capability "
                f"8.0 or newer; these are torch {torch.__version__} and "
                f"a {torch.cuda.get_device_name(device)}.",
                "Set attention to auto or sdpa.",
            )
        return
    # The package `kernels` downloads the kernel from the hub, so `auto` does not choose it.
    is_installed = FLASH_PACKAGES[attention]
    if device.type == "cpu" or not (is_installed() or is_installed(kernels_fallback_ok=True)):
        raise DeviceUnavailable(
            f"attention is {attention}, which is not installed or has no kernel for {device.type}; neither "
            "the package flash-attn nor the package kernels was found.",
            "Set attention to auto, which needs no package, or install flash-attn on a GPU host.",
        )
