"""Quantization of a frozen base to 4 bits, by bitsandbytes."""

import torch
from transformers import BitsAndBytesConfig
from transformers.utils import is_bitsandbytes_available

from trainers.configs.training import LoraTuning, Quantization, TrainingConfig
from trainers.runtime.errors import ConfigInvalid, DeviceUnavailable


def quantization_config(config: TrainingConfig, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """Return how the frozen base is quantized, or None; raises DeviceUnavailable without bitsandbytes."""
    tuning = config.tuning
    if not isinstance(tuning, LoraTuning) or tuning.quantization is None:
        return None
    if tuning.publish_dequantized_base:
        raise ConfigInvalid(
            "tuning.publish_dequantized_base is a part of MLX's program alone.",
            "Remove it, or run the stage on a Mac.",
        )
    if not is_bitsandbytes_available():
        raise DeviceUnavailable(
            f"tuning.quantization is {tuning.quantization}, which needs bitsandbytes; it is not installed.",
            "Install the extra `cuda` on the worker, or remove tuning.quantization.",
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=Quantization.nf4.value,
        bnb_4bit_use_double_quant=tuning.double_quantization,
        bnb_4bit_compute_dtype=dtype,
        # FSDP shards a module only if all its tensors have one dtype, so the packed 4-bit weights use it too.
        bnb_4bit_quant_storage=dtype,
    )


def disable_avx512_repacking(model: torch.nn.Module) -> None:
    """Keep bitsandbytes from repacking the 4-bit weights of a model; other layers are not changed.

    On a CPU with AVX512-BF16, bitsandbytes 0.50.2 repacks them in the first forward pass in eval mode. From
    then on they are multiplied in bf16 and without a gradient, in training too. The next `state_dict()`,
    which every checkpoint and every loaded adapter calls, unpacks them wrongly: their scales stay transposed,
    or, with double quantization, are rounded twice.
    """
    for layer in model.modules():
        # By name, because bitsandbytes need not be installed.
        if type(layer).__name__ == "Linear4bit":
            layer.support_avx512bf16_for_cpu = False
