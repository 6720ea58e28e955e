"""The requests of OpenAI's Fine-tuning API."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from app.fine_tuning.hyperparameters import FineTuningMethod
from app.fine_tuning.spec import FineTuningSpec
from app.http.errors import field_error
from app.openai_api.files.schemas import FileId
from app.openai_api.parameters import Metadata, OpenAIBody
from trainers.configs import Queue
from trainers.configs.base import MAX_COUNT, PRINTABLE_PATTERN

Auto = Literal["auto"]
Text = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=PRINTABLE_PATTERN)]
Epochs = Annotated[int, Field(ge=1, le=50)]
BatchSize = Annotated[int, Field(ge=1, le=256)]
Multiplier = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=1024, pattern=PRINTABLE_PATTERN)]


class Hyperparameters(OpenAIBody):
    """Hyperparameters of every method; `auto` chooses a number, which an event explains."""

    n_epochs: Auto | Epochs | None = Field(None, description="Passes over the rows.")
    batch_size: Auto | BatchSize | None = Field(None, description="Rows of an optimizer step.")
    learning_rate_multiplier: Auto | Multiplier | None = Field(
        None, description="Factor of the learning rate that the training stage has by default."
    )


class DpoHyperparameters(Hyperparameters):
    """Hyperparameters of `dpo`."""

    beta: Auto | Annotated[float, Field(gt=0, le=2)] | None = Field(
        None, description="Strength of the pull towards the model before training."
    )


class ReinforcementHyperparameters(Hyperparameters):
    """Hyperparameters of `reinforcement`."""

    compute_multiplier: Auto | Annotated[float, Field(gt=0, le=10)] | None = Field(
        None, description="Factor of the 8 completions that each prompt gets."
    )
    eval_interval: Auto | Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = Field(
        None, description="Steps between two validations; by default those of an epoch."
    )
    eval_samples: Auto | Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = Field(
        None, description="Completions of a validation, each of another prompt; by default of all."
    )
    reasoning_effort: Literal["default"] | None = Field(None, description="Only `default`.")


class SupervisedMethod(OpenAIBody):
    """Supervised fine-tuning."""

    hyperparameters: Hyperparameters = Field(Hyperparameters(), description="Its hyperparameters.")


class DpoMethod(OpenAIBody):
    """Direct preference optimization."""

    hyperparameters: DpoHyperparameters = Field(DpoHyperparameters(), description="Its hyperparameters.")


class ReinforcementMethod(OpenAIBody):
    """Reinforcement learning from a grader."""

    grader: dict[str, Any] = Field(description="Grader whose score of a completion is its reward.")
    hyperparameters: ReinforcementHyperparameters = Field(
        ReinforcementHyperparameters(), description="Its hyperparameters."
    )


class Method(OpenAIBody):
    """The method of a fine-tuning job."""

    type: Literal["supervised", "dpo", "reinforcement"] = Field(description="Name of the method.")
    supervised: SupervisedMethod | None = Field(None, description="Only with the type `supervised`.")
    dpo: DpoMethod | None = Field(None, description="Only with the type `dpo`.")
    reinforcement: ReinforcementMethod | None = Field(
        None, description="Required by the type `reinforcement`."
    )


class WandbIntegration(OpenAIBody):
    """A W&B project."""

    project: Text = Field(description="Name of the project.")
    name: Text | None = Field(None, description="Name of the run; by default that of job and stage.")
    entity: Text | None = Field(None, description="User or team; by default that of the worker's key.")
    tags: list[Text] = Field(default_factory=list, max_length=50, description="Tags of the run.")


class Integration(OpenAIBody):
    """A tracking service that receives the metrics."""

    type: Literal["wandb"] = Field(description="Only `wandb`.")
    wandb: WandbIntegration = Field(description="The project that receives them.")


class FineTuningCreate(OpenAIBody):
    """A fine-tuning job to create."""

    model: ModelName = Field(
        description="A name that the operator has mapped to a base, a hub id, a folder, a registry id, or a "
        "fine-tuned model."
    )
    training_file: FileId
    validation_file: FileId | None = None
    method: Method | None = Field(None, description="Method; `supervised` by default.")
    hyperparameters: Hyperparameters | None = Field(
        None, description="Those of `supervised`, at the place where they were before `method`."
    )
    suffix: Annotated[str, Field(min_length=1, max_length=64, pattern=PRINTABLE_PATTERN)] | None = Field(
        None, description="A part of the trained model's name."
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        None, description="Seed of the random choices; a random one by default."
    )
    integrations: list[Integration] | None = Field(
        None, max_length=1, description="Tracking services in addition to those of the workers."
    )
    metadata: Metadata | None = None
    training: dict[str, Any] = Field(
        default_factory=dict,
        max_length=50,
        description="Further fields of the stage `sft`, `dpo` or `grpo`, such as `max_length` and `tuning`; "
        "not in OpenAI's API.",
    )
    queue: Literal["cpu", "cuda"] | None = Field(
        None, description="Hardware to train on; not in OpenAI's API. By default the best that is alive."
    )


class PermissionsCreate(OpenAIBody):
    """Permissions of projects to use a fine-tuned model."""

    project_ids: list[Text] = Field(min_length=1, max_length=100, description="Ids of the projects.")


def read_spec(body: FineTuningCreate) -> FineTuningSpec:
    """Return the job to create; raises UnprocessableContent for fields of another method."""
    kind = FineTuningMethod(body.method.type if body.method is not None else "supervised")
    chosen = getattr(body.method, kind.value) if body.method is not None else None
    for other in FineTuningMethod:
        if body.method is not None and other is not kind and getattr(body.method, other.value) is not None:
            raise field_error(f"method.{other}", f"It has no effect, because method.type is {kind.value!r}.")
    if kind is FineTuningMethod.reinforcement and chosen is None:
        raise field_error("method.reinforcement", "The method needs its `grader`.")
    if body.hyperparameters is not None and (kind is not FineTuningMethod.supervised or chosen is not None):
        raise field_error("hyperparameters", f"Set method.{kind}.hyperparameters alone.")
    hyperparameters = chosen.hyperparameters if chosen is not None else body.hyperparameters
    return FineTuningSpec(
        model=body.model,
        training_file=body.training_file,
        method=kind,
        validation_file=body.validation_file,
        hyperparameters=hyperparameters.model_dump(exclude_none=True) if hyperparameters else {},
        grader=chosen.grader if isinstance(chosen, ReinforcementMethod) else None,
        suffix=body.suffix,
        seed=body.seed,
        integrations=[each.model_dump() for each in body.integrations or ()],
        metadata=body.metadata or {},
        training=body.training,
        queue=Queue(body.queue) if body.queue is not None else None,
    )
