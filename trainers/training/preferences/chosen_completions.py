"""A warning if DPO makes the preferred completions less likely too."""

from typing import Any

from trainers.configs.stages.dpo import DpoConfig
from trainers.runtime.events import EventWriter

# Warn if, over this many metric events, the chosen completions lost this share of their log-probability and
# at least one nat: single batches vary.
FALL_WINDOW = 3
FALL_SHARE = 0.05
FALL_NATS = 1.0


def warn_of_unlikely_chosen(
    config: DpoConfig, events: EventWriter, step: int, history: list[dict[str, Any]]
) -> None:
    """Warn once if margins grow while the chosen completions become unlikely.

    `history` contains the metric events up to this step, by TRL's names.
    """
    history = [entry for entry in history if "rewards/margins" in entry]
    if not _chosen_falls(history, config.beta) or any(
        _chosen_falls(history[:end], config.beta) for end in range(FALL_WINDOW, len(history))
    ):
        return
    events.write_warning(
        "chosen_logp_falls",
        f"By step {step} the margin has grown, but the chosen completions are less likely than before "
        f"training (mean reward {history[-1]['rewards/chosen']:.3f}): the model only unlearns the rejected "
        "ones faster. Add the loss sft, raise beta or lower learning_rate.",
    )


def _chosen_falls(history: list[dict[str, float]], beta: float) -> bool:
    """Return whether, over the last metric events, margins grew while chosen completions became unlikely."""
    window = history[-FALL_WINDOW:]
    if len(window) < FALL_WINDOW:
        return False
    margin, reward, logp = (
        sum(entry[name] for entry in window) / FALL_WINDOW
        for name in ("rewards/margins", "rewards/chosen", "logps/chosen")
    )
    lost = -reward / beta  # In nats, since a reward is beta * (log-probability - reference's).
    return margin > 0 and lost > max(FALL_NATS, FALL_SHARE * (-logp - lost))
