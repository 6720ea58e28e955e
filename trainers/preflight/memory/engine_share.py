"""Whether vLLM's share of a GPU holds the base from which it samples."""

import math
from typing import Final

from trainers.configs.on_policy import EngineSampledConfig, GenerationBackend
from trainers.configs.stages.preflight import HostMemory
from trainers.configs.training import TrainingConfig
from trainers.preflight.memory.shape import BF16_BYTES, FP32_BYTES, ModelShape

# What vLLM needs besides the weights: its activations, CUDA graphs and a small cache. Not measured on a GPU.
WORKING_BYTES: Final = 2 << 30
STEPS: Final = 20
MAX_SHARE: Final = 0.9
GB: Final = 10**9


def explain_small_share(
    config: TrainingConfig, shape: ModelShape, host: HostMemory, *, is_bf16: bool
) -> tuple[str, str] | None:
    """Return why vLLM cannot start in its share of a GPU, and what to do; None if the weights fit into it."""
    if not isinstance(config, EngineSampledConfig) or host.device != "cuda":
        return None
    if config.generation is not GenerationBackend.vllm:
        return None
    weights = shape.parameters * (BF16_BYTES if is_bf16 else FP32_BYTES)
    share, memory_bytes = config.vllm_memory_share, host.memory_bytes
    if share * memory_bytes >= weights:
        return None
    least = math.ceil(STEPS * (weights + WORKING_BYTES) / memory_bytes) / STEPS
    message = (
        f"vllm_memory_share {share:g} of a GPU with {memory_bytes / GB:.1f} GB is "
        f"{share * memory_bytes / GB:.1f} GB; the weights of the base need {weights / GB:.1f} GB."
    )
    if least > MAX_SHARE:
        return message, "Use a smaller base, a larger GPU, or generation transformers."
    return message, f"Set vllm_memory_share to {least:g} or more, or generation to transformers."
