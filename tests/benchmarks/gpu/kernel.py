"""Attention alone: torch's variable-length kernel against its attention under a mask, forward and backward.

The sequence is packed from rows of different lengths, with the heads of an 8B model. It needs torch alone.
"""

import time
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.benchmarks.gpu.cases import Bench, Case

ROW_LENGTHS = (300, 1700, 96, 2048, 512, 900, 1500, 1136)
QUERY_HEADS, KEY_HEADS, WIDTH = 32, 8, 128


def list_kernel_cases() -> list[Case]:
    """Return the comparison."""
    return [Case("varlen_attn against sdpa with a mask", _compare_kernels, ("varlen",))]


def _compare_kernels(bench: Bench) -> dict[str, Any]:
    lengths = [max(4, length // 32) for length in ROW_LENGTHS] if bench.is_tiny else list(ROW_LENGTHS)
    dtype = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    options: dict[str, Any] = {"device": bench.device, "dtype": dtype, "requires_grad": True}
    inputs = [
        torch.randn(sum(lengths), heads, WIDTH, **options) for heads in (QUERY_HEADS, KEY_HEADS, KEY_HEADS)
    ]
    row_of_token = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(bench.device)
    mask = (row_of_token[:, None] == row_of_token[None]).tril()[None, None]
    boundaries = torch.tensor([0, *lengths], device=bench.device).cumsum(0).to(torch.int32)
    kernel = _kernel(bench.device)
    # Older kernels share keys among queries without being asked.
    gqa = {"enable_gqa": True} if "enable_gqa" in signature(kernel).parameters else {}
    longest = max(lengths)

    def attend_varlen() -> torch.Tensor:
        return kernel(*inputs, boundaries, boundaries, longest, longest, window_size=(-1, 0), **gqa)

    def attend_masked() -> torch.Tensor:
        query, key, value = (tensor.transpose(0, 1)[None] for tensor in inputs)
        # As transformers does: under a mask, torch has no fast kernel that shares keys among queries.
        groups = QUERY_HEADS // KEY_HEADS
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
        return scaled_dot_product_attention(query, key, value, attn_mask=mask)[0].transpose(0, 1)

    repeats = 2 if bench.is_tiny else 20
    ours = _measure(attend_varlen, inputs, repeats, bench.device)
    masked = _measure(attend_masked, inputs, repeats, bench.device)
    return {
        "tokens": sum(lengths),
        "rows": len(lengths),
        "implementation": "kernel" if bench.device.type == "cuda" else "reference",
        "varlen": ours,
        "masked": masked,
        "speedup": round(masked["milliseconds"] / ours["milliseconds"], 2),
        "largest_difference": round(float((attend_varlen() - attend_masked()).detach().abs().max()), 5),
    }


def _kernel(device: torch.device) -> Callable[..., torch.Tensor]:
    if device.type != "cuda":
        from trainers.modeling.attention.reference import reference_varlen_attn

        return reference_varlen_attn
    from torch.nn.attention.varlen import varlen_attn

    kernel: Callable[..., torch.Tensor] = varlen_attn
    return kernel


def _measure(
    attend: Callable[[], torch.Tensor], inputs: list[torch.Tensor], repeats: int, device: torch.device
) -> dict[str, Any]:
    """Return the milliseconds of a forward and a backward pass, and the peak of their memory."""

    def step() -> None:
        torch.autograd.grad(attend().float().sum(), inputs)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    step()
    wait()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    for _ in range(repeats):
        step()
    wait()
    seconds = (time.perf_counter() - started) / repeats
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return {"milliseconds": round(seconds * 1000, 3), "peak_bytes": peak}
