"""Whether a run that was stopped goes on exactly as it would have gone, and if not, why."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from pydantic import Field

from trainers.configs.base import Config, Queue
from trainers.configs.stages.grpo import GenerationBackend

# Stages without checkpoints begin again from the start.
RESUMABLE = {"sft", "dpo", "grpo", "generate"}

OF_DEVICES = {
    Queue.cuda: (
        "Some CUDA kernels add in no fixed order, so the last digits of a step differ from one time to the "
        "next, whether the run was stopped or not."
    ),
    Queue.mlx: "That Apple's GPUs repeat a step to the last digit has not been measured.",
}
OF_VLLM = (
    "vLLM samples the answers from a random state of its own, which no checkpoint can hold: after a stop the "
    "model sees other answers to the same prompts."
)

OF_BATCHES = (
    "Answers that are there stay, but the rows after them meet other rows in the engine's batches, where "
    "sums are rounded otherwise."
)


class Exactness(StrEnum):
    """How alike are a run that was stopped and one that was not."""

    exact = "exact"
    approximate = "approximate"


class ResumeGuarantee(Config):
    """How a run goes on after a stop."""

    exactness: Exactness = Field(
        description="`exact` is with the same batches, losses and weights, on a host of the same kind."
    )
    reasons: list[str] = Field(description="Why it is only approximate.")


def get_resume_guarantee(stage: str, queue: Queue, config: Mapping[str, Any]) -> ResumeGuarantee | None:
    """How a run of this config goes on; None for a stage that begins again instead."""
    if stage not in RESUMABLE:
        return None
    if stage == "generate":
        return make_guarantee([OF_BATCHES])
    reasons = [OF_DEVICES[queue]] if queue in OF_DEVICES else []
    if config.get("generation", GenerationBackend.transformers) != GenerationBackend.transformers:
        reasons.append(OF_VLLM)
    return make_guarantee(reasons)


def make_guarantee(reasons: list[str]) -> ResumeGuarantee:
    """Approximate for these reasons, or exact if there are none."""
    return ResumeGuarantee(exactness=Exactness.approximate if reasons else Exactness.exact, reasons=reasons)
