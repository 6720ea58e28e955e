"""The guarantee that a resumed run ends with the same weights as an uninterrupted one, and its limits."""

from enum import StrEnum

from pydantic import Field

from trainers.configs.base import Config, Queue, StageConfig
from trainers.configs.engines import EngineClientConfig
from trainers.configs.on_policy import EngineSampledConfig
from trainers.configs.stage_table import StageKind

DEVICE_REASONS = {
    Queue.cuda: (
        "Some CUDA kernels add in no fixed order, so the last bits of a step differ between two executions, "
        "whether or not the run was resumed."
    ),
    Queue.mlx: "Whether Apple's GPUs repeat a step bit for bit has not been measured.",
}
ENGINE_SAMPLING_REASON = (
    "A resumed run samples with the same seeds, which follow from seed, step and row; but which completions "
    "share a batch of the engine depends on when requests arrive, and sums over another batch are rounded "
    "differently, so that a completion can change from some token on."
)
COMPILATION_REASON = (
    "Code that torch has compiled may add in an order that depends on the first rows it was compiled for, "
    "and a resumed run compiles for other rows, which changes the last bits."
)
BATCHING_REASON = (
    "Completed rows are kept, but the remaining rows share the engine's batches with other rows than before, "
    "and sums over another batch are rounded differently."
)


class Exactness(StrEnum):
    """Closeness of a resumed run to an uninterrupted one."""

    exact = "exact"
    approximate = "approximate"


class ResumeGuarantee(Config):
    """The exactness of a resumed run, with the reasons why it is only approximate."""

    exactness: Exactness = Field(
        description="`exact` means the same batches, losses and weights as without a stop, on an equal host."
    )
    reasons: list[str] = Field(description="Why the guarantee is only `approximate`; empty if `exact`.")


def get_resume_guarantee(config: StageConfig, queue: Queue) -> ResumeGuarantee | None:
    """Return how a run of this config continues after a stop, or None if it starts from the beginning."""
    if not StageKind(config.stage).stage.resumes:
        return None
    if isinstance(config, EngineClientConfig):
        return make_guarantee([BATCHING_REASON])
    reasons = [DEVICE_REASONS[queue]] if queue in DEVICE_REASONS else []
    if isinstance(config, EngineSampledConfig) and config.generation.engine is not None:
        reasons.append(ENGINE_SAMPLING_REASON)
    if getattr(config, "compile", False):
        reasons.append(COMPILATION_REASON)
    return make_guarantee(reasons)


def make_guarantee(reasons: list[str]) -> ResumeGuarantee:
    """Return an approximate guarantee with these reasons, or an exact one if there are none."""
    return ResumeGuarantee(exactness=Exactness.approximate if reasons else Exactness.exact, reasons=reasons)
