"""The error of the memory estimate for MLX, compared with the peak of MLX's allocator on the CPU device.

Models with random weights are trained for two steps on random tokens, all of which carry loss.

    python -m tests.benchmarks.trainers.mlx_memory
"""

import contextlib
import tempfile
from typing import Any

import mlx.core as mx
import numpy as np
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.benchmarks.report import print_table
from trainers.configs import TrainingConfig, parse_stage
from trainers.mlx.dropout import recomputed_activations
from trainers.mlx.network import load_trained_network
from trainers.mlx.training.batches import MicroBatch, StepBatches
from trainers.mlx.training.loop import train
from trainers.mlx.training.losses import completion_loss
from trainers.mlx.training.optimizer import DecayedAdamW
from trainers.preflight.memory.estimate import estimate_memory
from trainers.runtime.events import EventWriter

MIB = 1 << 20
LORA: dict[str, Any] = {"method": "lora", "rank": 16}
# Name, tuning, rows, tokens, whether activations are recomputed, layers, vocabulary.
CASES: list[tuple[str, dict[str, Any], int, int, bool, int, int]] = [
    ("LoRA", LORA, 2, 128, False, 4, 500),
    ("LoRA, long", LORA, 2, 256, False, 4, 500),
    ("LoRA, recomputed", LORA, 2, 256, True, 4, 500),
    ("DoRA", LORA | {"dora": True}, 2, 256, False, 4, 500),
    ("LoRA, dropout", LORA | {"dropout": 0.1}, 2, 256, False, 4, 500),
    ("LoRA, 4-bit base", LORA | {"quantization": "4bit"}, 2, 256, False, 4, 500),
    ("full", {"method": "full"}, 2, 256, False, 4, 500),
    ("full, recomputed", {"method": "full"}, 2, 256, True, 4, 500),
    ("LoRA, 8,000 words", LORA, 2, 256, False, 1, 8000),
]


def measure(config: TrainingConfig, rows: int, tokens: int, vocabulary: int, recomputes: bool) -> int:
    """Return the peak of MLX's allocator in bytes, weights included."""
    network, _ = load_trained_network(config, EventWriter(None), tokens)
    optimizer = DecayedAdamW(0.0)
    optimizer.init(network.trainable_parameters())
    ids = mx.array(np.random.default_rng(0).integers(0, vocabulary, (rows, tokens + 1), dtype=np.int32))
    batch = MicroBatch((ids, ids), rows * tokens, rows * tokens, rows)
    mx.clear_cache()
    mx.reset_peak_memory()
    with recomputed_activations(network) if recomputes else contextlib.nullcontext():
        train(
            network,
            optimizer,
            [StepBatches(step, 1.0, [batch]) for step in (1, 2)],
            completion_loss,
            learning_rate=lambda step: 1e-4,
            max_grad_norm=1.0,
            on_step=lambda result: True,
            is_compiled=False,
        )
    return int(mx.get_peak_memory())


def compare() -> list[list[str]]:
    """Return a row for each case: its peak, its estimate, and how far the estimate is above the peak."""
    table = []
    for name, tuning, rows, tokens, recomputes, layers, vocabulary in CASES:
        with tempfile.TemporaryDirectory() as base:
            shape = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4}
            more = {"num_key_value_heads": 2, "num_hidden_layers": layers, "vocab_size": vocabulary}
            AutoModelForCausalLM.from_config(LlamaConfig(**shape, **more)).save_pretrained(base)
            stage = {"stage": "sft", "base": base, "dataset": "rows", "backend": "mlx", "tuning": tuning}
            settings = {"micro_batch_size": rows, "activation_checkpointing": recomputes, "batch_size": rows}
            config = parse_stage(stage | settings)
            assert isinstance(config, TrainingConfig)
            peak = measure(config, rows, tokens, vocabulary, recomputes)
            estimate = estimate_memory(config, [], tokens)
        assert estimate is not None
        needed = sum(size for part, size in estimate["hosts"][0]["parts"].items() if part != "program")
        table.append([name, f"{peak / MIB:.1f}", f"{needed / MIB:.1f}", f"{needed / peak - 1:+.0%}"])
    return table


if __name__ == "__main__":
    mx.disable_compile()
    print_table("Memory of MLX", ["case", "peak, MiB", "estimate, MiB", "error"], compare())
