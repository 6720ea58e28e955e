"""A check of the reference with which preference losses compare the model."""

from trainers.configs.training import Precision

# How far the reference's log-probability of a completion may be from the untrained model's, as a share of it:
# the same computation in other batches differs in its last bits only.
REFERENCE_TOLERANCE = {Precision.fp32: 1e-4, Precision.bf16: 1e-2}


def check_reference(logs: dict[str, float], beta: float, precision: Precision) -> None:
    """Assert that the reference is the untrained model, given TRL's metrics of the first step.

    The rewards of step 1 are from before its update, so they must be zero.
    """
    for side in ("chosen", "rejected"):
        if f"rewards/{side}" not in logs:
            continue  # A step of KTO may have rows of one label only.
        difference = abs(logs[f"rewards/{side}"]) / beta
        allowed = REFERENCE_TOLERANCE[precision] * abs(logs[f"logps/{side}"])
        assert difference <= allowed + 1e-3, (
            f"The reference is not the untrained model: {side} completions differ by {difference} nats."
        )
