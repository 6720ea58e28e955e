"""Torch-free configs: the API validates with them, workers write them, programs read them."""

from trainers.configs.base import (
    AdaptedModel,
    Config,
    DatasetPart,
    DatasetRef,
    GateOutcome,
    ModelRef,
    Queue,
    StageDataset,
    StageLimits,
    StageOutput,
)
from trainers.configs.engines import (
    EngineChoice,
    EngineClientConfig,
    EngineKind,
    EngineOptions,
    EngineQuantization,
    EngineTask,
    Pooling,
)
from trainers.configs.on_policy import EngineSampledConfig, GenerationBackend, OnPolicyConfig
from trainers.configs.stage_config import AnyStage, parse_stage
from trainers.configs.stage_table import Product, Rows, Stage, StageKind
from trainers.configs.stages.deploy import DeployConfig, DeploymentChoice, ParityMode
from trainers.configs.stages.distill import DistillConfig
from trainers.configs.stages.dpo import DpoConfig, DpoLoss
from trainers.configs.stages.evaluate import EvaluateConfig
from trainers.configs.stages.evaluations.compare import CompareConfig, EvaluationFolder, StageEvaluation
from trainers.configs.stages.evaluations.gate import GateBasis, GateConfig, LatestEvaluation
from trainers.configs.stages.evaluations.select import SelectConfig
from trainers.configs.stages.export import ExportConfig, ExportFormat
from trainers.configs.stages.generate import GenerateConfig
from trainers.configs.stages.grpo import GrpoConfig, GrpoLoss, RewardScale
from trainers.configs.stages.harness.lm_eval import HarnessBackend, LmEvalConfig
from trainers.configs.stages.import_model import ImportConfig
from trainers.configs.stages.kto import KtoConfig, KtoLoss
from trainers.configs.stages.merge import MergeConfig, MergeDtype
from trainers.configs.stages.migration.fetch import FetchConfig
from trainers.configs.stages.migration.record import RecordConfig
from trainers.configs.stages.preflight import HostMemory, PreflightConfig
from trainers.configs.stages.prepare import PrepareConfig
from trainers.configs.stages.serving.batch import BatchConfig, BatchEndpoint
from trainers.configs.stages.serving.promote import PromoteConfig
from trainers.configs.stages.sft import SftConfig
from trainers.configs.training import (
    Attention,
    FullTuning,
    LearningRateSchedule,
    LoraTuning,
    Parallelism,
    Precision,
    Quantization,
    TrainingConfig,
)

__all__ = [
    "AdaptedModel",
    "AnyStage",
    "Attention",
    "BatchConfig",
    "BatchEndpoint",
    "CompareConfig",
    "Config",
    "DatasetPart",
    "DatasetRef",
    "DeployConfig",
    "DeploymentChoice",
    "DistillConfig",
    "DpoConfig",
    "DpoLoss",
    "EngineChoice",
    "EngineClientConfig",
    "EngineKind",
    "EngineOptions",
    "EngineQuantization",
    "EngineSampledConfig",
    "EngineTask",
    "EvaluateConfig",
    "EvaluationFolder",
    "ExportConfig",
    "ExportFormat",
    "FetchConfig",
    "FullTuning",
    "GateBasis",
    "GateConfig",
    "GateOutcome",
    "GenerateConfig",
    "GenerationBackend",
    "GrpoConfig",
    "GrpoLoss",
    "HarnessBackend",
    "HostMemory",
    "ImportConfig",
    "KtoConfig",
    "KtoLoss",
    "LatestEvaluation",
    "LearningRateSchedule",
    "LmEvalConfig",
    "LoraTuning",
    "MergeConfig",
    "MergeDtype",
    "ModelRef",
    "OnPolicyConfig",
    "Parallelism",
    "ParityMode",
    "Pooling",
    "Precision",
    "PreflightConfig",
    "PrepareConfig",
    "Product",
    "PromoteConfig",
    "Quantization",
    "Queue",
    "RecordConfig",
    "RewardScale",
    "Rows",
    "SelectConfig",
    "SftConfig",
    "Stage",
    "StageDataset",
    "StageEvaluation",
    "StageKind",
    "StageLimits",
    "StageOutput",
    "TrainingConfig",
    "parse_stage",
]
