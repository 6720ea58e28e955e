"""Checks of a stage against the stages before it and the hardware that is alive, when a job is posted."""

from collections.abc import Iterator, Mapping

from sqlmodel import Session

from app.http.errors import UnprocessableContent
from app.settings import Settings
from app.tables import Model, ModelKind
from app.workers import service as workers
from trainers.configs import MergeConfig, Queue, StageOutput
from trainers.configs.references import REGISTRY_PREFIX
from trainers.configs.stage_config import AnyStage
from trainers.configs.training import FullTuning, TrainingConfig


def check_merge(
    session: Session, stage: AnyStage, path: str, earlier: Mapping[str, AnyStage]
) -> Iterator[UnprocessableContent]:
    """Yield an error for a merge of a model without an adapter; `earlier` contains the stages by name."""
    if not isinstance(stage, MergeConfig):
        return
    if isinstance(stage.model, StageOutput):
        producer = earlier.get(stage.model.stage)
        whole = producer is not None and _writes_whole_weights(producer)
    else:
        row = session.get(Model, stage.model) if str(stage.model).startswith(REGISTRY_PREFIX) else None
        whole = row is not None and row.kind is ModelKind.base
    if whole:
        yield _error(
            f"{path}.model",
            "The model has whole weights, so there is no adapter to merge: leave out this stage, or train "
            "with LoRA before it.",
        )


def check_processes(
    session: Session, settings: Settings, stage: AnyStage, queue: Queue, path: str
) -> Iterator[UnprocessableContent]:
    """Yield an error for more processes than any live worker of the queue `cpu` has CPUs."""
    if queue is not Queue.cpu or not isinstance(stage, TrainingConfig) or stage.devices == 1:
        return
    alive = [one for one in workers.list_alive_workers(session, settings) if queue in one.queues]
    most = max((one.hardware.get("cpus") or 0 for one in alive), default=0)
    if 0 < most < stage.devices:
        yield _error(
            f"{path}.devices",
            f"{stage.devices} processes are more than the {most} CPUs of the largest live worker of queue "
            "cpu. Omit devices, or set the queue to cuda on a host with GPUs.",
        )


def _writes_whole_weights(config: AnyStage) -> bool:
    is_full = isinstance(config, TrainingConfig) and isinstance(config.tuning, FullTuning)
    return is_full or isinstance(config, MergeConfig)


def _error(path: str, message: str) -> UnprocessableContent:
    return UnprocessableContent(f"{path}: {message}", fields=[{"field": path, "message": message}])
