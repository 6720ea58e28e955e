"""How far an adapter on its published base is from the model that was trained on 4-bit weights."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from transformers import PreTrainedTokenizerBase

from trainers.configs.training import TrainingConfig
from trainers.exporting.reference import PROMPTS
from trainers.mlx.adapter_format import PEFT_PARTS
from trainers.mlx.adapters import load_adapter, load_adapter_weights, quantized_layers
from trainers.mlx.blocks import released_blocks
from trainers.mlx.network import load_network, pick_mlx_precision
from trainers.mlx.quantized_base import QUANTIZED_BASE, Probe, QuantizedBase, measure_gap
from trainers.mlx.training.batches import pad_rows
from trainers.runtime import run_dir as files

COMPLETION_TOKENS = 16


def record_quantized_base(
    network: nn.Module, config: TrainingConfig, tokenizer: PreTrainedTokenizerBase, folder: Path, base: str
) -> None:
    """Write the record next to the published adapter in `folder`.

    Prompts and greedy completions are scored by the network with that adapter, then by `base` with it: the
    location of the base for which it is published.
    """
    load_adapter_weights(network, folder)
    network.eval()
    rows = [_complete(network, prompt) for prompt in _render(tokenizer)]
    probes = [
        Probe(ids=row, logprobs=scores) for row, scores in zip(rows, _score(network, rows), strict=True)
    ]
    precision = pick_mlx_precision(config)
    mx.clear_cache()
    published = load_network(base, precision)
    load_adapter(published, folder)
    published.eval()
    with released_blocks(published):
        found = _score(published, rows)
    layers = list(quantized_layers(network).values())
    record = QuantizedBase(
        format=layers[0].mode,
        bits=max(layer.bits for layer in layers),
        group_size=max(layer.group_size for layer in layers),
        precision=precision,
        sha256=_hash_base(network),
        gap=measure_gap(probes, found),
        probes=probes,
    )
    files.write_json(folder / QUANTIZED_BASE, record.model_dump(mode="json"))


def _render(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    texts: Sequence[str] = PROMPTS
    if tokenizer.chat_template:
        texts = [
            str(
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
                )
            )
            for text in texts
        ]
    return [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


def _complete(network: Any, prompt: list[int]) -> list[int]:
    ids, unread, cache = list(prompt), prompt, make_prompt_cache(network)
    for _ in range(COMPLETION_TOKENS):
        ids.append(int(network(mx.array([unread]), cache=cache)[0, -1].argmax().item()))
        unread = ids[-1:]
    return ids


def _score(network: Any, rows: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return the log-probability of each token but the first of each row, in one pass for all rows."""
    ids = pad_rows([np.array(row, np.int32) for row in rows], 0)
    logits = network(ids[:, :-1]).astype(mx.float32)
    scores = -nn.losses.cross_entropy(logits, ids[:, 1:])
    # A rounding error above 0 is no probability.
    found: Any = mx.minimum(scores, 0.0).tolist()
    return [values[: len(row) - 1] for values, row in zip(found, rows, strict=True)]


def _hash_base(network: nn.Module) -> str:
    """Return the hash of all weights but the adapter's, by the names that they have without it."""
    digest = hashlib.sha256()
    for name, weight in sorted(tree_flatten(network.parameters())):
        module, _, part = name.rpartition(".")
        if part in PEFT_PARTS:
            continue
        digest.update(f"{module.removesuffix('.linear')}.{part} {weight.dtype} {weight.shape}\n".encode())
        digest.update(np.array(weight.view(mx.uint8)).tobytes())
    return digest.hexdigest()
