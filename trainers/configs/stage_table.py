"""The table of stages, from which the rest of the code derives everything that depends on a stage's kind."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from trainers.configs.base import StageConfig, StageLimits
from trainers.configs.stages.deploy import DeployConfig
from trainers.configs.stages.distill import DistillConfig
from trainers.configs.stages.dpo import DpoConfig
from trainers.configs.stages.evaluate import EvaluateConfig
from trainers.configs.stages.evaluations.compare import CompareConfig
from trainers.configs.stages.evaluations.gate import GateConfig
from trainers.configs.stages.evaluations.select import SelectConfig
from trainers.configs.stages.export import ExportConfig
from trainers.configs.stages.generate import GenerateConfig
from trainers.configs.stages.grpo import GrpoConfig
from trainers.configs.stages.harness.lm_eval import LmEvalConfig
from trainers.configs.stages.import_model import ImportConfig
from trainers.configs.stages.kto import KtoConfig
from trainers.configs.stages.merge import MergeConfig
from trainers.configs.stages.migration.fetch import FetchConfig
from trainers.configs.stages.migration.record import RecordConfig
from trainers.configs.stages.preflight import PreflightConfig
from trainers.configs.stages.prepare import PrepareConfig
from trainers.configs.stages.serving.batch import BatchConfig
from trainers.configs.stages.serving.promote import PromoteConfig
from trainers.configs.stages.sft import SftConfig
from trainers.configs.training import TrainingConfig


class Rows(StrEnum):
    """The rows that a stage can read."""

    completions = "completions"
    pairs = "pairs"
    labels = "labels"  # Completions that a label calls good or bad; a pair is one of each.
    any = "any"


class Product(StrEnum):
    """What a stage produces in addition to its result."""

    model = "model"
    datasets = "datasets"
    evaluation = "evaluation"
    comparison = "comparison"
    batch = "batch"  # Files of responses and of errors.
    selected_model = "selected_model"  # The model of another stage, which becomes its own.


_HOUR = 3600.0
_GIB = 1 << 30
# `prepare` needs little memory; what the other stages need follows from the model.
_PREPARE_LIMITS = StageLimits(max_seconds=12 * _HOUR, max_memory_bytes=32 * _GIB, max_disk_bytes=200 * _GIB)
_DEFAULT_LIMITS = StageLimits(max_seconds=48 * _HOUR, max_disk_bytes=200 * _GIB)
_MERGE_LIMITS = StageLimits(max_seconds=12 * _HOUR, max_disk_bytes=2048 * _GIB)
_COMPARE_LIMITS = StageLimits(max_seconds=12 * _HOUR, max_memory_bytes=32 * _GIB, max_disk_bytes=200 * _GIB)
# A checkpoint of full fine-tuning has up to 16 bytes for each parameter, and several exist at once.
_TRAINING_LIMITS = StageLimits(max_seconds=720 * _HOUR, max_disk_bytes=8192 * _GIB)

# Longer than a batch may take, so that its own end comes first.
_BATCH_LIMITS = StageLimits(max_seconds=30 * _HOUR, max_memory_bytes=4 * _GIB, max_disk_bytes=200 * _GIB)
# A model at OpenAI may allow few requests a minute.
_RECORD_LIMITS = StageLimits(max_seconds=168 * _HOUR, max_memory_bytes=4 * _GIB, max_disk_bytes=200 * _GIB)

_INFERENCE = ("torch", "transformers", "peft")
_REPORTS = ("scipy", "matplotlib", "pyarrow")
_TRAINING = (*_INFERENCE, "trl", "datasets")


@dataclass(frozen=True)
class Stage:
    """A row of the table of stages."""

    config: type[StageConfig]
    # Module that a worker starts as `python -m`; None if the worker itself runs the stage.
    program: str | None
    # Distributions without which the program cannot start.
    packages: tuple[str, ...]
    product: Product | None = None
    # Module that trains the stage with MLX; None if torch alone can.
    mlx_program: str | None = None
    # Whether a later attempt continues from what an earlier one has saved, or starts from the beginning.
    resumes: bool = False
    # The rows that its `dataset` must have.
    reads: Rows = Rows.completions
    # Whether its product is the model itself as whole weights, rather than a model trained from it.
    merges: bool = False
    # Whether its rows may be documents, which have no prompt.
    reads_documents: bool = False
    # Whether its rows may be prompts without a completion.
    reads_prompts: bool = False
    # Limits of one attempt, which a setting can change.
    limits: StageLimits = _DEFAULT_LIMITS


class StageKind(StrEnum):
    """Kind of work that a stage does."""

    # To add a stage, add a line.
    prepare = Stage(
        PrepareConfig,
        "trainers.prepare",
        ("transformers",),
        Product.datasets,
        reads=Rows.any,
        limits=_PREPARE_LIMITS,
    )
    preflight = Stage(PreflightConfig, "trainers.preflight", _TRAINING)
    sft = Stage(
        SftConfig,
        "trainers.sft",
        _TRAINING,
        mlx_program="trainers.mlx.sft",
        product=Product.model,
        resumes=True,
        reads_documents=True,
        limits=_TRAINING_LIMITS,
    )
    dpo = Stage(
        DpoConfig,
        "trainers.dpo",
        _TRAINING,
        mlx_program="trainers.mlx.dpo",
        product=Product.model,
        resumes=True,
        reads=Rows.pairs,
        limits=_TRAINING_LIMITS,
    )
    kto = Stage(
        KtoConfig,
        "trainers.kto",
        _TRAINING,
        Product.model,
        resumes=True,
        reads=Rows.labels,
        limits=_TRAINING_LIMITS,
    )
    grpo = Stage(
        GrpoConfig,
        "trainers.grpo",
        _TRAINING,
        Product.model,
        resumes=True,
        reads_prompts=True,
        limits=_TRAINING_LIMITS,
    )
    distill = Stage(
        DistillConfig,
        "trainers.distill",
        _TRAINING,
        Product.model,
        resumes=True,
        reads=Rows.any,
        limits=_TRAINING_LIMITS,
    )
    merge = Stage(MergeConfig, "trainers.merge", _INFERENCE, Product.model, merges=True, limits=_MERGE_LIMITS)
    export = Stage(
        ExportConfig, "trainers.export", _INFERENCE, Product.model, merges=True, limits=_MERGE_LIMITS
    )
    # `import` is a keyword of Python; the value is the stage's name.
    import_ = Stage(
        ImportConfig,
        "trainers.import_model",
        _INFERENCE,
        Product.model,
        reads=Rows.any,
        limits=_MERGE_LIMITS,
    )
    evaluate = Stage(
        EvaluateConfig,
        "trainers.evaluate",
        (*_INFERENCE, *_REPORTS),
        Product.evaluation,
        resumes=True,
    )
    select = Stage(
        SelectConfig, "trainers.select", ("numpy",), Product.selected_model, limits=_COMPARE_LIMITS
    )
    gate = Stage(GateConfig, "trainers.gate", ("scipy",), limits=_COMPARE_LIMITS)
    compare = Stage(
        CompareConfig,
        "trainers.compare",
        _REPORTS,
        Product.comparison,
        reads=Rows.any,
        limits=_COMPARE_LIMITS,
    )
    lm_eval = Stage(
        LmEvalConfig,
        "trainers.lm_eval",
        (*_INFERENCE, *_REPORTS, "datasets", "lm-eval"),
        Product.evaluation,
        resumes=True,
        reads=Rows.any,
    )
    generate = Stage(GenerateConfig, "trainers.generate", _INFERENCE, resumes=True, reads_prompts=True)
    batch = Stage(
        BatchConfig, "serving.batch", (), Product.batch, resumes=True, reads=Rows.any, limits=_BATCH_LIMITS
    )
    fetch = Stage(FetchConfig, "trainers.fetch", (), Product.datasets, reads=Rows.any, limits=_PREPARE_LIMITS)
    record = Stage(
        RecordConfig,
        "trainers.record",
        (),
        Product.datasets,
        resumes=True,
        reads=Rows.any,
        reads_prompts=True,
        limits=_RECORD_LIMITS,
    )
    deploy = Stage(DeployConfig, None, _INFERENCE)
    # A judge runs the program of `evaluate`.
    promote = Stage(PromoteConfig, None, (*_INFERENCE, *_REPORTS))

    stage: Stage

    @property
    def trains(self) -> bool:
        """Whether the stage changes the weights of a model on a dataset."""
        return issubclass(self.stage.config, TrainingConfig)

    @property
    def produces_model(self) -> bool:
        """Whether a later stage can use this stage's output as a model."""
        return self.stage.product in (Product.model, Product.selected_model)

    def __new__(cls, stage: Stage | str) -> Self:
        """Make the member for a line of the table; its value is the default of `stage` in the config."""
        # The type of `StageKind("sft")`, which looks a member up, is this method's, but it does not run then.
        assert isinstance(stage, Stage)
        name = stage.config.model_fields["stage"].default
        member = str.__new__(cls, name)
        member._value_ = name
        member.stage = stage
        return member
