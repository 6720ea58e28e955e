"""A frozen base in fewer bits, by bitsandbytes."""

import torch
from transformers import BitsAndBytesConfig
from transformers.utils import is_bitsandbytes_available

from trainers.configs.training import LoraTuning, TrainingConfig
from trainers.runtime.errors import DeviceUnavailable


def quantization_config(config: TrainingConfig, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """How a frozen base is kept in 4 bits; raises DeviceUnavailable without bitsandbytes."""
    tuning = config.tuning
    if not isinstance(tuning, LoraTuning) or tuning.quantization is None:
        return None
    if not is_bitsandbytes_available():
        raise DeviceUnavailable(
            f"tuning.quantization is {tuning.quantization}, for which this host lacks bitsandbytes.",
            "Install the extra `cuda` on the worker, or leave quantization out.",
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=tuning.quantization.value,
        bnb_4bit_use_double_quant=tuning.double_quantization,
        bnb_4bit_compute_dtype=dtype,
        # FSDP shards tensors of one type only.
        bnb_4bit_quant_storage=dtype,
    )


def disable_avx512_repacking(model: torch.nn.Module) -> None:
    """Have a model that was just loaded keep its 4-bit weights as they are; others are left alone.

    On a CPU with AVX512-BF16, bitsandbytes 0.50.2 lays them out anew in the first forward pass in eval mode.
    From then on they are multiplied in bf16 and without a gradient, in training too; and the next
    `state_dict()`, which every checkpoint and every adapter that is loaded calls, brings them back wrongly:
    their scales stay transposed, or with double quantization are rounded twice.
    """
    for layer in model.modules():
        # By its name, so that bitsandbytes need not be installed.
        if type(layer).__name__ == "Linear4bit":
            layer.support_avx512bf16_for_cpu = False
