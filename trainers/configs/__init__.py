"""Torch-free configs: the API validates with them, workers write them, programs read them."""

from trainers.configs.base import AdaptedModel, Config, DatasetRef, ModelRef, Queue, StageOutput
from trainers.configs.deploy import DeployConfig, EngineKind
from trainers.configs.evaluate import EvaluateConfig, Metric
from trainers.configs.prepare import PrepareConfig
from trainers.configs.sft import FullTuning, LearningRateSchedule, LoraTuning, Precision, SftConfig
from trainers.configs.stages import Stage, StageKind, parse_stage

__all__ = [
    "AdaptedModel",
    "Config",
    "DatasetRef",
    "DeployConfig",
    "EngineKind",
    "EvaluateConfig",
    "FullTuning",
    "LearningRateSchedule",
    "LoraTuning",
    "Metric",
    "ModelRef",
    "Precision",
    "PrepareConfig",
    "Queue",
    "SftConfig",
    "Stage",
    "StageKind",
    "StageOutput",
    "parse_stage",
]
