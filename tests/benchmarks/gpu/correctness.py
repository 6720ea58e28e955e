"""Cases that compare losses and gradients: those of the same rows, laid out and computed in other ways."""

import math
from typing import Any, Final

from tests.benchmarks.gpu.cases import Bench, Case
from tests.benchmarks.gpu.training_run import run_stage

# Shares of a loss. Rounding in bf16 differs between kernels; fp32 on a CPU differs in the last bits only. A
# gradient's norm may differ by five times as much.
TOLERANCES: Final = {"fp32": 1e-3, "bf16": 0.01, "nf4": 0.1}
GRADIENT_FACTOR: Final = 5
REFERENCE: Final = "padded"


def list_correctness_cases() -> list[Case]:
    """Return the cases, the reference of the others first."""
    packing = {"packing": True, "batch_size": 4, "micro_batch_size": 2}
    return [
        Case(REFERENCE, lambda bench: _run(bench, {"attention": "sdpa"})),
        Case("padding-free", lambda bench: _compare(bench, REFERENCE, {"attention": "varlen"}), VARLEN),
        Case("packed under a mask", lambda bench: _run(bench, packing | {"attention": "sdpa"})),
        Case(
            "packed",
            lambda bench: _compare(bench, "packed under a mask", packing | {"attention": "varlen"}),
            VARLEN,
        ),
        Case("recomputed", lambda bench: _compare(bench, REFERENCE, {"activation_checkpointing": True})),
        Case("compiled", lambda bench: _compare(bench, REFERENCE, {"compile": True}), expected_seconds=60),
        Case("liger", lambda bench: _compare(bench, REFERENCE, {"kernels": "liger"}), ("trainers", "liger")),
        Case("micro-batches of one row", lambda bench: _compare(bench, REFERENCE, {"micro_batch_size": 1})),
        Case("fp32", lambda bench: _compare(bench, REFERENCE, {"precision": "fp32", "attention": "sdpa"})),
        Case("qlora", _compare_qlora, ("trainers", "nf4")),
        Case("dpo with sdpa", lambda bench: _run_dpo(bench, {"attention": "sdpa"})),
        Case("dpo", lambda bench: _add_difference(bench, _run_dpo(bench, {}), "dpo with sdpa", "bf16")),
        Case("grpo with sdpa", lambda bench: _run_grpo(bench, {"attention": "sdpa"})),
        Case("grpo", _compare_grpo),
    ]


VARLEN: Final = ("trainers", "varlen")


def _base(bench: Bench) -> dict[str, Any]:
    return {
        "base": bench.model("0.6b"),
        "max_steps": 6,
        "batch_size": 16,
        "micro_batch_size": 8,
        # High, so that the losses of later steps depend on the gradients of earlier ones.
        "learning_rate": 2e-3,
    }


def _run(bench: Bench, changes: dict[str, Any]) -> dict[str, Any]:
    short = bench.rows("short", 400, (20, 400))
    values = _base(bench) | {"stage": "sft", "dataset": short, "max_length": 512, **changes}
    return run_stage(values, bench.folder / "run")


def _run_dpo(bench: Bench, changes: dict[str, Any]) -> dict[str, Any]:
    pairs = bench.rows("pairs", 200, (20, 200), "dpo")
    values = {"stage": "dpo", "dataset": pairs, "max_length": 512, "learning_rate": 1e-5, **changes}
    return run_stage(_base(bench) | values, bench.folder / "run")


def _run_grpo(bench: Bench, changes: dict[str, Any]) -> dict[str, Any]:
    values = {
        "stage": "grpo",
        "dataset": bench.rows("short", 400, (20, 400)),
        "max_steps": 3,
        "batch_size": 32,
        "num_generations": 8,
        "max_completion_length": bench.tokens(128),
        "rewards": [{"kind": "chrf"}],
        **changes,
    }
    return run_stage(_base(bench) | values, bench.folder / "run")


def _compare(bench: Bench, against: str, changes: dict[str, Any]) -> dict[str, Any]:
    return _add_difference(bench, _run(bench, changes), against, "bf16")


def _compare_qlora(bench: Bench) -> dict[str, Any]:
    tuning = {"method": "lora", "quantization": "nf4"}
    return _add_difference(bench, _run(bench, {"tuning": tuning}), REFERENCE, "nf4")


def _compare_grpo(bench: Bench) -> dict[str, Any]:
    """Compare the rewards of the first step: rounding changes which tokens are sampled."""
    measured = _run_grpo(bench, {})
    assert all(map(math.isfinite, measured["losses"])), "a loss of GRPO is not finite"
    other = bench.results.get("grpo with sdpa", {}).get("rewards")
    return measured | {
        "against": "grpo with sdpa",
        "difference_of_first_reward": abs(measured["rewards"][0] - other[0]) if other else None,
    }


def _add_difference(bench: Bench, measured: dict[str, Any], against: str, rounding: str) -> dict[str, Any]:
    """Add the largest differences of losses and gradient norms, as shares, and whether they are allowed."""
    expected = bench.results.get(against, {})
    if "losses" not in expected:
        return measured | {"against": against, "agrees": None}
    allowed = TOLERANCES["fp32" if bench.device.type == "cpu" and rounding == "bf16" else rounding]
    losses, gradients = (
        max(abs(one - other) / abs(other) for one, other in zip(measured[name], expected[name], strict=True))
        for name in ("losses", "gradient_norms")
    )
    return measured | {
        "against": against,
        "largest_difference": round(losses, 7),
        "largest_gradient_difference": round(gradients, 7),
        "tolerance": allowed,
        "agrees": losses <= allowed and gradients <= GRADIENT_FACTOR * allowed,
    }
