"""Checks of a stage when a job is posted: its names and limits, the stages before it, the hardware alive."""

from collections.abc import Collection, Iterator, Mapping

from sqlmodel import Session, col, select

from app.deployments.served_models import explain_missing_model
from app.http.errors import UnprocessableContent, field_error
from app.jobs.graph.backends import check_kernels
from app.models.deployed_model import DeployedModelRefused, check_adapter_slots, check_deployed_model
from app.models.references import resolve_model
from app.settings import Settings, get_settings
from app.tables import Alias, Batch, Checkpoint, Evaluation, Model, ModelKind, Rescue, Run
from app.workers import service as workers
from trainers.configs import (
    BatchConfig,
    CompareConfig,
    DeployConfig,
    EngineClientConfig,
    EngineSampledConfig,
    EvaluationFolder,
    ExportConfig,
    FetchConfig,
    ImportConfig,
    MergeConfig,
    PreflightConfig,
    Product,
    Queue,
    RecordConfig,
    SelectConfig,
    StageEvaluation,
    StageKind,
    StageOutput,
)
from trainers.configs.base import CheckpointModel, EndpointModel
from trainers.configs.metrics.translation import Comet
from trainers.configs.references import REGISTRY_PREFIX, find_served_models
from trainers.configs.stage_config import AnyStage
from trainers.configs.training import FullTuning, TrainingConfig


def check_batch(session: Session, stage: AnyStage, path: str) -> Iterator[UnprocessableContent]:
    """Yield an error for a batch that is not being created now, together with this job."""
    if not isinstance(stage, BatchConfig):
        return
    batch = session.get(Batch, stage.batch) if stage.batch is not None else None
    if batch is None or batch.job_id is not None:
        yield field_error(f"{path}.batch", "A batch is created, with its job, by POST /v1/batches.")


def check_rescue(session: Session, stage: AnyStage, path: str) -> Iterator[UnprocessableContent]:
    """Yield an error for a stage with the operator's key of OpenAI that is not of a rescue being created."""
    if not isinstance(stage, FetchConfig | RecordConfig):
        return
    rescue = session.get(Rescue, stage.rescue) if stage.rescue is not None else None
    earlier = rescue and (
        rescue.fetch_job_id if isinstance(stage, FetchConfig) else rescue.fine_tuning_job_id
    )
    if rescue is None or earlier is not None:
        yield field_error(f"{path}.rescue", "A rescue is created, with its jobs, by POST /api/v1/rescues.")


def check_merge(
    session: Session, stage: AnyStage, path: str, earlier: Mapping[str, AnyStage]
) -> Iterator[UnprocessableContent]:
    """Yield an error for a merge or an adapter's export of a model that has none.

    `earlier` contains the stages by name.
    """
    if not isinstance(stage, MergeConfig | ExportConfig):
        return
    exported = [form for form in stage.formats if form.is_adapter] if isinstance(stage, ExportConfig) else []
    if isinstance(stage, ExportConfig) and not exported:
        return
    if isinstance(stage.model, StageOutput):
        producer = earlier.get(stage.model.stage)
        if isinstance(producer, SelectConfig):
            producer = earlier.get(producer.tries[0].stage)
        whole = producer is not None and _writes_whole_weights(producer)
    else:
        row = session.get(Model, stage.model) if str(stage.model).startswith(REGISTRY_PREFIX) else None
        whole = row is not None and row.kind is ModelKind.base
    if whole and exported:
        yield field_error(
            f"{path}.formats",
            f"The model has whole weights, so there is no adapter for the format {exported[0]}: leave it "
            "out, or train with LoRA before it.",
        )
    elif whole:
        yield field_error(
            f"{path}.model",
            "The model has whole weights, so there is no adapter to merge: leave out this stage, or train "
            "with LoRA before it.",
        )


def check_deployment(
    session: Session, stage: AnyStage, path: str, earlier: Mapping[str, AnyStage]
) -> Iterator[UnprocessableContent]:
    """Yield an error for a model that does not fit the task or the options of its deployment.

    `earlier` contains the stages by name.
    """
    if not isinstance(stage, DeployConfig):
        return
    try:
        if isinstance(stage.model, StageOutput):
            producer = earlier.get(stage.model.stage)
            if isinstance(producer, TrainingConfig) and not _writes_whole_weights(producer):
                check_adapter_slots(stage, f"The model of the stage {stage.model.stage}", f"{path}.model")
        elif isinstance(stage.model, str):
            check_deployed_model(session, stage.model, stage, f"{path}.model")
    except DeployedModelRefused as error:
        yield error


def check_processes(
    session: Session, alive: workers.AliveWorkers, stage: AnyStage, queue: Queue, path: str
) -> Iterator[UnprocessableContent]:
    """Yield an error for more processes than any live worker of the queue `cpu` has CPUs."""
    if queue is not Queue.cpu or not isinstance(stage, TrainingConfig) or stage.devices == 1:
        return
    serving = [worker for worker in alive.read(session) if queue in worker.queues]
    most = max((worker.hardware.get("cpus") or 0 for worker in serving), default=0)
    if 0 < most < stage.devices:
        yield field_error(
            f"{path}.devices",
            f"{stage.devices} processes are more than the {most} CPUs of the largest live worker of queue "
            "cpu. Omit devices, or set the queue to cuda on a host with GPUs.",
        )


def check_names(
    session: Session, stage: AnyStage, name: str, path: str, earlier: Collection[str]
) -> list[UnprocessableContent]:
    """Return an error for each name that is taken, and for the address of an engine.

    `earlier` contains the names of the stages before it.
    """
    errors: list[UnprocessableContent] = []
    if name in earlier:
        errors.append(
            field_error(f"{path}.name", f"An earlier stage is also called {name!r}: name this one.")
        )
    if isinstance(stage, EngineClientConfig):
        for field in ("engine_url", "engine_model", "engines", "pending", "origins"):
            if getattr(stage, field, None):
                errors.append(
                    field_error(f"{path}.{field}", "Omit this field: the worker starts the engine.")
                )
    if isinstance(stage, ExportConfig) and stage.gguf_environment is not None:
        errors.append(field_error(f"{path}.gguf_environment", "Omit this field: the worker sets it."))
    trained = stage.target if isinstance(stage, PreflightConfig) else stage
    field = f"{path}.target" if trained is not stage else path
    errors += check_kernels(trained, field)
    if isinstance(trained, EngineSampledConfig) and trained.engine_program is not None:
        errors.append(field_error(f"{field}.engine_program", "Omit this field: the worker sets it."))
    errors += _check_metric_programs(session, stage, path)
    if isinstance(stage, ExportConfig) and stage.push is not None:
        errors += _check_push(stage.push.repository, path)
    if isinstance(stage, ImportConfig):
        errors += _check_import(stage, path)
    if isinstance(stage, DeployConfig) and session.get(Alias, stage.deployment) is not None:
        message = f"{stage.deployment!r} is an alias. Choose another name, and point the alias at it later."
        errors.append(field_error(f"{path}.deployment", message))
    return errors


def check_evaluations(
    session: Session, stage: AnyStage, path: str, upstream: Mapping[str, AnyStage]
) -> Iterator[UnprocessableContent]:
    """Yield an error for each evaluation of a comparison that is a folder or does not exist.

    `upstream` contains the stages that this one needs, by name.
    """
    if not isinstance(stage, CompareConfig):
        return
    for position, evaluation in enumerate(stage.evaluations):
        field = f"{path}.evaluations.{position}"
        if isinstance(evaluation, EvaluationFolder):
            yield field_error(field, "Name the id of an evaluation (`evaluation_…`) instead of a folder.")
        elif isinstance(evaluation, StageEvaluation):
            yield from _check_producer(evaluation, field, upstream)
        # The lock makes a request that deletes the evaluation's job wait until this job is visible to it.
        elif session.get(Evaluation, evaluation, with_for_update={"read": True}) is None:
            message = f"There is no evaluation {evaluation}. List them with GET /api/v1/evaluations."
            yield field_error(field, message)


def _check_producer(
    evaluation: StageEvaluation, field: str, upstream: Mapping[str, AnyStage]
) -> Iterator[UnprocessableContent]:
    producer = upstream.get(evaluation.stage)
    if producer is None:
        names = ", ".join(upstream) or "none"
        message = f"This stage needs no stage called {evaluation.stage!r}. It needs: {names}."
        yield field_error(field, message)
    elif StageKind(producer.stage).stage.product is not Product.evaluation:
        message = f"Stage {evaluation.stage!r} is of kind {producer.stage}, which evaluates no model."
        yield field_error(field, message)


def _check_metric_programs(session: Session, stage: AnyStage, path: str) -> list[UnprocessableContent]:
    """Return an error for a program that only a worker may name, or a model that is not in a folder."""
    errors: list[UnprocessableContent] = []
    for position, metric in enumerate(getattr(stage, "metrics", None) or ()):
        if not isinstance(metric, Comet):
            continue
        field = f"{path}.metrics.{position}"
        if metric.environment is not None:
            errors.append(field_error(f"{field}.environment", "Omit this field: the worker sets it."))
        if not metric.checkpoint.startswith("/"):
            message = "A COMET model is an absolute folder under a root of TUNESMITH_MODEL_ROOTS."
            errors.append(field_error(f"{field}.checkpoint", message))
            continue
        try:
            resolve_model(session, metric.checkpoint, f"{field}.checkpoint")
        except UnprocessableContent as error:
            errors.append(error)
    return errors


def _check_push(repository: str, path: str) -> list[UnprocessableContent]:
    """Return an error unless the operator allows uploads to the namespace: they use the worker's token."""
    namespace, allowed = repository.partition("/")[0], get_settings().hub_push_namespaces
    if namespace in allowed:
        return []
    message = (
        f"This service may not upload to {namespace} on the hub; allowed: {', '.join(allowed) or 'none'}. "
        "The operator can add it to TUNESMITH_HUB_PUSH_NAMESPACES."
    )
    return [field_error(f"{path}.push.repository", message)]


def _check_import(stage: ImportConfig, path: str) -> list[UnprocessableContent]:
    """Return an error for each model that an import cannot have: it comes from outside the registry."""
    errors: list[UnprocessableContent] = []
    if not isinstance(stage.model, str) or stage.model.startswith(REGISTRY_PREFIX):
        errors.append(
            field_error(f"{path}.model", "Name a hub id or a folder; a model of the registry is in it.")
        )
    if stage.base is not None and not isinstance(stage.base, str):
        errors.append(field_error(f"{path}.base", "Name a hub id, a folder or a registry id."))
    return errors


def check_served_models(
    session: Session, stage: AnyStage, path: str, settings: Settings
) -> Iterator[UnprocessableContent]:
    """Yield an error for each endpoint that the operator has not named, and each deployment without a row."""
    for field, model in find_served_models(stage):
        fault = explain_missing_model(session, model, settings, field)
        if fault is not None:
            part = "endpoint" if isinstance(model, EndpointModel) else "deployment"
            yield field_error(f"{path}.{field}.{part}", fault)


UNPUBLISHED_BASE_HINT = "Evaluate the checkpoint after the run has succeeded: resume or retry its job."


def require_checkpoint(session: Session, model: CheckpointModel, field: str) -> None:
    """Raise an error for a checkpoint that is not stored, or of a run that trains no model."""
    run = session.get(Run, model.run)
    if run is None or not run.stage.trains:
        raise field_error(f"{field}.run", f"There is no training run {model.run!r}.")
    query = select(Checkpoint.step).where(col(Checkpoint.run_id) == run.id).order_by(col(Checkpoint.step))
    steps = list(session.exec(query))
    if not steps or (model.step is not None and model.step not in steps):
        known = ", ".join(map(str, steps)) or "none"
        raise field_error(
            f"{field}.step",
            f"No such checkpoint of {run.id} is stored; its checkpoints: {known}. `keep_checkpoints` of the "
            "training stage, and TUNESMITH_SUCCEEDED_CHECKPOINTS, decide which are kept.",
        )
    config = run.stage_config()
    if isinstance(config, TrainingConfig) and config.publishes_base and run.model_id is None:
        raise field_error(f"{field}.run", f"{explain_unpublished_base(run)} {UNPUBLISHED_BASE_HINT}")


def explain_unpublished_base(run: Run) -> str:
    """Return why a checkpoint of the run cannot be used as a model yet: its base is not published."""
    return (
        f"The checkpoints of {run.id} are adapters of the base that the run publishes when it succeeds "
        f"(tuning.publish_dequantized_base), and it is {run.status}."
    )


def check_limits(stage: AnyStage, path: str, settings: Settings) -> list[UnprocessableContent]:
    """Return an error for each limit that is above the service's own."""
    errors: list[UnprocessableContent] = []
    allowed = settings.limits_of(StageKind(stage.stage))
    for name, value in stage.limits or ():
        limit = getattr(allowed, name)
        if value is not None and limit is not None and value > limit:
            message = (
                f"{value:,} is above the service's limit of {limit:,} for a stage of kind {stage.stage}. "
                f"Lower it, or ask an operator to raise {name} in TUNESMITH_STAGE_LIMITS."
            )
            errors.append(field_error(f"{path}.limits.{name}", message))
    return errors


def _writes_whole_weights(config: AnyStage) -> bool:
    is_full = isinstance(config, TrainingConfig) and isinstance(config.tuning, FullTuning)
    return is_full or isinstance(config, MergeConfig | ExportConfig)
