"""How far an adapter on its published base is from the model that was trained on 4-bit weights."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from transformers import PreTrainedTokenizerBase

from trainers.configs.references import get_base_model
from trainers.configs.training import TrainingConfig
from trainers.mlx.adapter_format import PEFT_PARTS
from trainers.mlx.adapters import load_adapter, load_adapter_weights, quantized_layers
from trainers.mlx.blocks import released_blocks
from trainers.mlx.network import load_network, pick_mlx_precision
from trainers.mlx.training.batches import pad_rows
from trainers.mlx.training.state import unchanged_random_state
from trainers.modeling.quantization.probes import COMPLETION_TOKENS, render_probes
from trainers.modeling.quantization.record import (
    QuantizedBase,
    make_probes,
    measure_gap,
    write_quantized_base,
)


class AffineGapRecorder:
    """Measures the gap of a network whose base is in 4 bits, as often as its adapter is written."""

    def __init__(
        self, network: nn.Module, config: TrainingConfig, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self._network, self._config, self._tokenizer = network, config, tokenizer

    def record_checkpoint(self, folder: Path) -> None:
        """Write the record of the network's adapter into a folder that contains it.

        A rounded base that will be published has the values of the network's own: there is no gap.
        """
        config = self._config
        self._record(folder, None if config.publishes_base else get_base_model(config.base))

    def record_published(self, folder: Path, base: str) -> None:
        """Write the record of a published adapter, which may be that of an earlier step, for its base."""
        load_adapter_weights(self._network, folder)
        self._record(folder, base)

    def _record(self, folder: Path, base: str | None) -> None:
        """Let the network score prompts and its completions, then the base at a location with the adapter."""
        network = self._network
        with unchanged_random_state(), _evaluated(network):
            rows = [_complete(network, prompt) for prompt in render_probes(self._tokenizer)]
            expected = _score(network, rows)
            mx.clear_cache()
            found = expected if base is None else self._score_published(folder, base, rows)
        layers = list(quantized_layers(network).values())
        probes = make_probes(rows, expected)
        record = QuantizedBase(
            format=layers[0].mode,
            bits=max(layer.bits for layer in layers),
            group_size=max(layer.group_size for layer in layers),
            precision=pick_mlx_precision(self._config),
            sha256=self._sha256,
            gap=measure_gap(probes, found),
            probes=probes,
        )
        write_quantized_base(record, folder)

    def _score_published(self, folder: Path, base: str, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        published = load_network(base, pick_mlx_precision(self._config))
        load_adapter(published, folder)
        published.eval()
        with released_blocks(published):
            return _score(published, rows)

    @cached_property
    def _sha256(self) -> str:
        """The hash of all weights but the adapter's, by the names that they have without it."""
        digest = hashlib.sha256()
        for name, weight in sorted(tree_flatten(self._network.parameters())):
            module, _, part = name.rpartition(".")
            if part in PEFT_PARTS:
                continue
            digest.update(f"{module.removesuffix('.linear')}.{part} {weight.dtype} {weight.shape}\n".encode())
            digest.update(np.array(weight.view(mx.uint8)).tobytes())
        return digest.hexdigest()


@contextmanager
def _evaluated(network: nn.Module) -> Iterator[None]:
    network.eval()
    try:
        yield
    finally:
        network.train()


def _complete(network: Any, prompt: list[int]) -> list[int]:
    ids, unread, cache = list(prompt), list(prompt), make_prompt_cache(network)
    for _ in range(COMPLETION_TOKENS):
        logits = network(mx.array([unread]), cache=cache)
        unread = [int(logits[0, -1].argmax().item())]
        ids += unread
    return ids


def _score(network: Any, rows: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return the log-probability of each token but the first of each row, in one pass for all rows."""
    ids = pad_rows([np.array(row, np.int32) for row in rows], 0)
    logits = network(ids[:, :-1]).astype(mx.float32)
    scores = -nn.losses.cross_entropy(logits, ids[:, 1:])
    # A rounding error above 0 is no probability.
    found: Any = mx.minimum(scores, 0.0).tolist()
    return [values[: len(row) - 1] for values, row in zip(found, rows, strict=True)]
