"""Pairs of completions with MLX: their batches, the reference's log-probabilities, and the losses of DPO.

In shapes, b is the number of pairs and t that of tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from trainers.configs.stages.dpo import DpoLoss
from trainers.mlx.training.batches import MakeBatch, MicroBatch, pad_rows, read_row, split_rows
from trainers.mlx.training.loop import Loss
from trainers.rendering.cache.mapped import Int32s
from trainers.rendering.examples.preferences import TRIPLE, PreferenceSet

PairLoss = Callable[[mx.array, mx.array, mx.array, mx.array, float], Any]


class PairRows:
    """The trained pairs of a dataset as token ids."""

    def __init__(self, preferences: PreferenceSet) -> None:
        self._indices = np.flatnonzero(preferences.trained)
        self._columns = [preferences.mapped.table[name] for name in TRIPLE]
        prompts, chosen = (preferences.mapped.lengths(name)[self._indices] for name in TRIPLE[:2])
        self.longest: Int32s = preferences.lengths
        """The tokens of each pair's longer side."""
        # The first token of a sequence is never predicted.
        self.n_chosen_tokens: Int32s = chosen - (prompts == 0)

    def __len__(self) -> int:
        return len(self._indices)

    def pad(self, rows: Sequence[int]) -> tuple[mx.array, mx.array, int]:
        """Return token ids and the mask of completions (2b, t), chosen first, and the number of tokens."""
        triples = [[read_row(column, int(self._indices[row])) for column in self._columns] for row in rows]
        sides = [(triple[0], triple[side]) for side in (1, 2) for triple in triples]
        ids = [np.concatenate(side) for side in sides]
        masks: list[npt.NDArray[np.int32]] = [
            np.repeat(np.array([0, 1], np.int32), [len(part) for part in side]) for side in sides
        ]
        return pad_rows(ids, 0), pad_rows(masks, 0), sum(map(len, ids))


def reference_logps(
    network: nn.Module, pairs: PairRows, micro_batch_size: int, file: Path
) -> npt.NDArray[np.float32]:
    """Return the log-probabilities (n, 2) of chosen and rejected completions under the untrained network.

    They are computed once and kept in `file`, so that a later attempt trains with the same bits.
    """
    if file.exists():
        found: npt.NDArray[np.float32] = np.load(file)
        return found
    logps: npt.NDArray[np.float32] = np.zeros((len(pairs), 2), np.float32)
    # Pairs of similar length, so that little is padded.
    order = [int(row) for row in np.argsort(pairs.longest, kind="stable")]
    network.eval()
    for rows in split_rows(order, micro_batch_size):
        ids, mask, _ = pairs.pad(rows)
        logps[rows] = np.array(_completion_logps(network, ids, mask)[0]).reshape(2, -1).T
        mx.clear_cache()
    network.train()
    partial = file.with_name(f".{file.name}")
    with partial.open("wb") as handle:
        np.save(handle, logps)
    partial.rename(file)
    return logps


def preference_batches(pairs: PairRows, reference: npt.NDArray[np.float32]) -> MakeBatch:
    """Return a function that makes micro-batches for `preference_loss`."""

    def make_batch(rows: Sequence[int], group: Sequence[int]) -> MicroBatch:
        ids, mask, tokens = pairs.pad(rows)
        # Over the whole step, so that `sft` is a mean over its tokens, however they are divided.
        pairs_per_token = len(group) / int(pairs.n_chosen_tokens[group].sum())
        inputs = (ids, mask, mx.array(reference[rows].T.flatten()), mx.array(pairs_per_token))
        return MicroBatch(inputs, len(rows), tokens, len(rows))

    return make_batch


def preference_loss(losses: Mapping[DpoLoss, float], beta: float) -> Loss:
    """Return the weighted sum of losses over pairs, with TRL's metrics as sums over pairs."""

    def loss(
        network: nn.Module, ids: mx.array, mask: mx.array, reference: mx.array, pairs_per_token: mx.array
    ) -> tuple[mx.array, dict[str, mx.array]]:
        logps, is_likeliest = _completion_logps(network, ids, mask)
        chosen, rejected = mx.split(logps - reference, 2)
        n_chosen, n_rejected = mx.split(mask[:, 1:].sum(axis=1), 2)
        chosen_logps, rejected_logps = mx.split(logps, 2)
        total = mx.array(0.0)
        for kind, weight in losses.items():
            if kind is DpoLoss.sft:
                total = total - weight * pairs_per_token * chosen_logps.sum()
            else:
                found = PAIR_LOSSES[kind](chosen, rejected, n_chosen, n_rejected, beta)
                total = total + weight * found.sum()
        values = {
            "rewards/chosen": beta * chosen.sum(),
            "rewards/rejected": beta * rejected.sum(),
            "rewards/accuracies": (chosen > rejected).sum(),
            "rewards/margins": beta * (chosen - rejected).sum(),
            "logps/chosen": chosen_logps.sum(),
            "logps/rejected": rejected_logps.sum(),
            "mean_token_accuracy": pairs_per_token * mx.split(is_likeliest, 2)[0].sum(),
        }
        return total, {name: mx.stop_gradient(value.astype(mx.float32)) for name, value in values.items()}

    return loss


def _sigmoid(chosen: mx.array, rejected: mx.array, _: mx.array, __: mx.array, beta: float) -> Any:
    return -nn.log_sigmoid(beta * (chosen - rejected))


def _sigmoid_norm(
    chosen: mx.array, rejected: mx.array, n_chosen: mx.array, n_rejected: mx.array, beta: float
) -> Any:
    return -nn.log_sigmoid(beta * (chosen / n_chosen - rejected / n_rejected))


def _hinge(chosen: mx.array, rejected: mx.array, _: mx.array, __: mx.array, beta: float) -> Any:
    return mx.maximum(1 - beta * (chosen - rejected), 0)


def _ipo(chosen: mx.array, rejected: mx.array, n_chosen: mx.array, n_rejected: mx.array, beta: float) -> Any:
    return (chosen / n_chosen - rejected / n_rejected - 1 / (2 * beta)) ** 2


def _apo_zero(chosen: mx.array, rejected: mx.array, _: mx.array, __: mx.array, beta: float) -> Any:
    return 1 - mx.sigmoid(beta * chosen) + mx.sigmoid(beta * rejected)


def _apo_down(chosen: mx.array, rejected: mx.array, _: mx.array, __: mx.array, beta: float) -> Any:
    return mx.sigmoid(beta * chosen) + 1 - mx.sigmoid(beta * (chosen - rejected))


# Of each pair, given the log-ratios (b) of its sides to the reference, and their numbers of tokens (b). The
# formulas are those of the papers that `DpoLoss` names, as TRL computes them.
PAIR_LOSSES: dict[DpoLoss, PairLoss] = {
    DpoLoss.sigmoid: _sigmoid,
    DpoLoss.sigmoid_norm: _sigmoid_norm,
    DpoLoss.hinge: _hinge,
    DpoLoss.ipo: _ipo,
    DpoLoss.apo_zero: _apo_zero,
    DpoLoss.apo_down: _apo_down,
}


def _completion_logps(network: Any, ids: mx.array, mask: mx.array) -> tuple[mx.array, mx.array]:
    """Return each completion's log-probability (2b), and which tokens of it (2b, t) are the likeliest."""
    logits = network(ids[:, :-1]).astype(mx.float32)
    targets, is_completion = ids[:, 1:], mask[:, 1:]
    logps = -nn.losses.cross_entropy(logits, targets) * is_completion
    return logps.sum(axis=1), (logits.argmax(axis=-1) == targets) * is_completion
