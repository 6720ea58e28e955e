"""Torch-free configs: the API validates with them, workers write them, programs read them."""

from trainers.configs.base import AdaptedModel, Config, DatasetRef, ModelRef, Queue, StageOutput
from trainers.configs.deploy import DeployConfig, EngineKind
from trainers.configs.dpo import DpoConfig, DpoLoss
from trainers.configs.evaluate import EvaluateConfig, Metric
from trainers.configs.grpo import GrpoConfig, GrpoLoss, RewardScale
from trainers.configs.prepare import PrepareConfig
from trainers.configs.sft import SftConfig
from trainers.configs.stages import AnyStage, Stage, StageKind, parse_stage
from trainers.configs.training import (
    FullTuning,
    LearningRateSchedule,
    LoraTuning,
    Precision,
    TrainingConfig,
)

__all__ = [
    "AdaptedModel",
    "AnyStage",
    "Config",
    "DatasetRef",
    "DeployConfig",
    "DpoConfig",
    "DpoLoss",
    "EngineKind",
    "EvaluateConfig",
    "FullTuning",
    "GrpoConfig",
    "GrpoLoss",
    "LearningRateSchedule",
    "LoraTuning",
    "Metric",
    "ModelRef",
    "Precision",
    "PrepareConfig",
    "Queue",
    "RewardScale",
    "SftConfig",
    "Stage",
    "StageKind",
    "StageOutput",
    "TrainingConfig",
    "parse_stage",
]
