"""Fields that have no effect with the other fields of a stage, when a job is posted."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from app.http.errors import UnprocessableContent, field_error
from trainers.configs import DpoConfig, EngineKind, LoraTuning, Queue, TrainingConfig
from trainers.configs.backends.choice import Backend, choose_backend
from trainers.configs.base import Config
from trainers.configs.engines import EngineChoice, list_unread_options
from trainers.configs.on_policy import EngineSampledConfig, GenerationBackend
from trainers.configs.presets import apply_presets
from trainers.configs.stage_config import AnyStage
from trainers.configs.stages.dpo import DpoLoss
from trainers.configs.training import Parallelism
from trainers.configs.validation import ValidatedTrainingConfig, ValidationConfig


class UnusedField(NamedTuple):
    """A field by its path in the stage, and what it would need."""

    path: str
    needed: str


def check_unused_fields(stage: AnyStage, queue: Queue, path: str) -> Iterator[UnprocessableContent]:
    """Yield an error for each field that was set and has no effect on the queue.

    A field with its default is not reported, nor one with the value of a preset: the stage may override the
    fields of the preset that it belongs to.
    """
    preset = _preset_values(stage)
    for unused in _list_unused(stage, queue):
        value, default = _read(stage, unused.path)
        if value not in (default, _find(preset, unused.path)):
            message = f"{unused.path} {value} has no effect: {unused.needed}, or omit {unused.path}."
            yield field_error(f"{path}.{unused.path}", message)


def _list_unused(stage: AnyStage, queue: Queue) -> Iterator[UnusedField]:
    if isinstance(stage, EngineChoice):
        for option, needed in list_unread_options(stage.engine):
            yield UnusedField(f"options.{option}", needed)
        if stage.engine is EngineKind.vllm:
            option = "memory_share" if queue is Queue.cpu else "cpu_cache_gib"
            yield UnusedField(f"options.{option}", _other_queue(queue))
    if isinstance(stage, TrainingConfig):
        yield from _list_unused_training_fields(stage, queue)
    if isinstance(stage, ValidationConfig):
        yield from _list_unused_validation_fields(stage)


def _other_queue(queue: Queue) -> str:
    return f"vLLM does not read it on queue {queue}; set queue to {'cuda' if queue is Queue.cpu else 'cpu'}"


def _list_unused_training_fields(stage: TrainingConfig, queue: Queue) -> Iterator[UnusedField]:
    if isinstance(stage, EngineSampledConfig) and stage.generation is not GenerationBackend.vllm:
        needed = f"it is for generation vllm, and generation is {stage.generation}; set that to vllm"
        yield UnusedField("vllm_memory_share", needed)
    elif isinstance(stage, EngineSampledConfig) and queue is Queue.cpu:
        yield UnusedField("vllm_memory_share", _other_queue(queue))
    if isinstance(stage, EngineSampledConfig) and stage.generation.engine is None:
        yield UnusedField("engine_timeout_seconds", "no engine generates; set generation to vllm or hf")
    if isinstance(stage.tuning, LoraTuning):
        field = "tuning.double_quantization"
        if stage.tuning.quantization is None:
            yield UnusedField(field, "set tuning.quantization to nf4")
        elif choose_backend(stage, queue).backend is Backend.mlx:
            yield UnusedField(field, "MLX does not have it; use torch on queue cuda or cpu")
    if stage.processes == 1 and stage.parallelism is not Parallelism.auto:
        yield UnusedField("parallelism", "the run has one process; set devices, or nodes, to 2 or more")
    if isinstance(stage, DpoConfig) and set(stage.losses) == {DpoLoss.sft}:
        for field in ("beta", "precompute_reference"):
            yield UnusedField(field, "the loss sft has no reference; add another loss")


def _list_unused_validation_fields(stage: ValidationConfig) -> Iterator[UnusedField]:
    if stage.validation_dataset is None:
        for field in ("validate_every_steps", "max_validation_rows"):
            yield UnusedField(field, "set validation_dataset")
    if not isinstance(stage, ValidatedTrainingConfig):
        return
    if stage.early_stopping_patience is None:
        yield UnusedField("early_stopping_min_improvement", "set early_stopping_patience")
    if stage.sweep is None:
        for field in ("sweep_max_runs", "sweep_max_seconds"):
            yield UnusedField(field, "set sweep")


def _preset_values(stage: AnyStage) -> dict[str, Any]:
    if not isinstance(stage, TrainingConfig) or not stage.preset:
        return {}
    return apply_presets(stage.stage, {"preset": stage.preset})


def _read(config: Config, path: str) -> tuple[Any, Any]:
    """Return the value of a field and its default."""
    first, _, rest = path.partition(".")
    value = getattr(config, first)
    return _read(value, rest) if rest else (value, type(config).model_fields[first].default)


def _find(values: dict[str, Any], path: str) -> Any:
    """Return a value of nested mappings, or None."""
    first, _, rest = path.partition(".")
    value = values.get(first)
    if not rest:
        return value
    return _find(value, rest) if isinstance(value, dict) else None
