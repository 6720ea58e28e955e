"""Config of the `evaluate` stage: several models complete the same prompts, and metrics score them."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from trainers.configs.base import (
    MAX_COUNT,
    WEIGHTLESS_MODELS,
    AdaptedModel,
    CheckpointModel,
    Config,
    DatasetRef,
    DeployedModel,
    EndpointModel,
    NonEmpty,
    Seed,
    StageName,
    StageOutput,
    StoredResponses,
)
from trainers.configs.engines import EngineClientConfig, EngineKind, RunningEngine, join_capabilities
from trainers.configs.graders.model import ReasoningEffort
from trainers.configs.metrics import MathsExactMatch, Metrics
from trainers.configs.metrics.base import MetricConfig
from trainers.configs.metrics.general import Perplexity
from trainers.configs.metrics.judge import REFERENCE
from trainers.configs.parsing.chat_options import OfferedTools, ResponseFormat
from trainers.configs.stages.evaluations.early_stop import EarlyStop

MODEL, BASELINE = "model", "baseline"
MAX_OTHERS = 6
MAX_SAMPLES = 1024
MAX_SLICES = 8

EvaluatedModel = Annotated[
    NonEmpty | StageOutput | AdaptedModel | CheckpointModel | EndpointModel | DeployedModel | StoredResponses,
    Field(
        description="A model: a hub id, a folder under an allowed root, an id of the registry (`model_…`), "
        "`{stage: <name>}` for the output of an earlier stage, `{run: <id>, step: 50}` for a checkpoint, "
        "`{deployment: <name>}`, `{endpoint: <name>, model: …}` for an OpenAI-compatible endpoint that "
        "the operator has named, or `{field: <name>}` for responses that each row of the dataset contains."
    ),
]


class LengthSlices(Config):
    """Slices by the length of the prompt."""

    by: Literal["length"] = Field("length", description="What decides the slice of a row.")
    bounds: list[Annotated[int, Field(ge=1, le=MAX_COUNT)]] = Field(
        default_factory=list,
        max_length=19,
        description="Characters at which the next slice begins, in rising order; empty makes thirds.",
    )

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if sorted(set(self.bounds)) != self.bounds:
            raise ValueError("bounds must rise")
        return self


Slices = Annotated[
    list[NonEmpty | LengthSlices],
    Field(
        max_length=MAX_SLICES,
        description="Parts of the rows that are also scored and compared on their own: the name of a field, "
        'such as `level` or `source`, or `{"by": "length"}`.',
    ),
]


class ModelOrigin(Config):
    """What a worker knows about a model."""

    name: NonEmpty = Field(description="The model as a person reads it.")
    facts: dict[str, str] = Field(
        default_factory=dict, description="What identifies the weights: location, registry id, hashes."
    )
    training_data: dict[str, NonEmpty] = Field(
        default_factory=dict, description="Files on which it and its ancestors were trained, by name."
    )
    missing_data: list[str] = Field(
        default_factory=list, description="Training sets of its lineage that no longer exist."
    )


class EvaluateConfig(EngineClientConfig):
    """Complete every row by each model, score the completions, and compare the first with the others."""

    completions_file: ClassVar[str] = "responses.jsonl"
    stage: Literal["evaluate"] = Field("evaluate", description="Kind of the stage.")
    model: EvaluatedModel
    baseline: EvaluatedModel | None = Field(
        None, description="A second model to compare with, such as the untuned base."
    )
    others: dict[StageName, EvaluatedModel] = Field(
        default_factory=dict, max_length=MAX_OTHERS, description="Further models to compare with, by name."
    )
    dataset: DatasetRef
    metrics: Metrics = Field([MathsExactMatch()])
    max_rows: int | None = Field(
        None, ge=1, le=MAX_COUNT, description="Score the first rows of the dataset only; null scores all."
    )
    samples: int = Field(1, ge=1, le=MAX_SAMPLES, description="Completions of each row.")
    temperature: float = Field(0.0, ge=0, le=2, description="0 is greedy decoding, which can be repeated.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Sample from the most likely tokens whose probabilities sum to this."
    )
    max_new_tokens: int = Field(
        256,
        ge=1,
        le=MAX_COUNT,
        description="Maximum tokens of a completion; fewer if the model's window leaves fewer.",
    )
    seed: Seed = 42
    tools: OfferedTools | None = Field(
        None, description="Functions that every prompt offers, unless its row has tools of its own."
    )
    response_format: ResponseFormat | None = Field(
        None, description="Form of the responses, as OpenAI's: `json_object`, or `json_schema` with a schema."
    )
    reasoning_effort: ReasoningEffort | None = Field(
        None, description="Effort of a model that reasons; engines `hf` and `mlx` have none."
    )
    concurrency: int = Field(32, ge=1, le=1024, description="Requests that an engine is sent at once.")
    slices: Slices = Field(default_factory=list)
    clusters: NonEmpty | None = Field(
        None,
        max_length=200,
        description="Field whose equal values mark rows that are not independent, such as several questions "
        "about one `document`: intervals and tests count documents, not questions. Null takes each row as "
        "independent.",
    )
    early_stop: EarlyStop | None = Field(
        None,
        description="End the evaluation as soon as a test that may be looked at after each row has decided "
        "whether `model` is good enough. Rows are then completed in a random order, which `seed` decides. A "
        "gate with `on: sequential` uses the decision.",
    )
    engines: dict[StageName, RunningEngine] = Field(
        default_factory=dict,
        max_length=MAX_OTHERS + 2,
        description="Running engines by the names of their models (`model`, `baseline`, …). Only by hand: "
        "for a job, the worker starts them.",
    )
    pending: list[StageName] = Field(
        default_factory=list,
        max_length=MAX_OTHERS + 2,
        description="Models whose engine the worker starts later. Only the worker sets it.",
    )
    origins: dict[StageName, ModelOrigin] = Field(
        default_factory=dict,
        max_length=MAX_OTHERS + 2,
        description="Name, identity and training data of the models. Only by hand: for a job, the worker "
        "knows them.",
    )

    @model_validator(mode="after")
    def _check_samples(self) -> Self:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples above 1 need a temperature above 0: greedy completions are all equal")
        most = max(self.metrics, key=lambda metric: metric.min_samples)
        if most.min_samples > self.samples:
            raise ValueError(
                f"the metric {most.label} needs {most.min_samples} samples; samples is {self.samples}"
            )
        if taken := self.others.keys() & {MODEL, BASELINE, REFERENCE}:
            raise ValueError(f"others may not contain {min(taken)!r}, which has a meaning of its own")
        return self

    @model_validator(mode="after")
    def _check_perplexity(self) -> Self:
        if not self.scores_references:
            return self
        unable = [
            name for name, model in self.models.items() if isinstance(model, EndpointModel | StoredResponses)
        ]
        if unable or (self.engine is EngineKind.sglang and self.engine_models):
            raise ValueError(
                "the metric perplexity needs an engine that scores the tokens of a prompt, hf, mlx or vllm; "
                f"{unable[0] if unable else 'sglang'} does not"
            )
        return self

    @model_validator(mode="after")
    def _check_opponents(self) -> Self:
        known = [REFERENCE, *self.models]
        for metric in self.metrics:
            against = getattr(metric, "against", REFERENCE)
            if against not in known:
                raise ValueError(
                    f"the metric {metric.label} compares with {against!r}; there are: {', '.join(known)}"
                )
        return self

    @model_validator(mode="after")
    def _check_early_stop(self) -> Self:
        if self.early_stop is None:
            return self
        metric, against = self.early_stop_metric, self.early_stop.against
        if not metric.can_grow or metric.scale.high is None:
            raise ValueError(
                f"early_stop cannot decide by {metric.label}: it needs a mean over rows on a scale with two "
                "ends, such as exact_match"
            )
        if self.clusters is not None:
            raise ValueError("early_stop counts each row as independent, which clusters excludes")
        if isinstance(against, str) and (against == MODEL or against not in self.models):
            raise ValueError(
                f"early_stop compares with {against!r}; the other models are: {', '.join(self.models)}"
            )
        if abs(self.early_stop.margin) >= self.early_stop_bound:
            raise ValueError(
                f"the margin {self.early_stop.margin:g} of early_stop decides without a response: values of "
                f"{metric.label} differ by at most {self.early_stop_bound:g}"
            )
        return self

    @property
    def early_stop_metric(self) -> MetricConfig:
        """The metric of `early_stop`; raises ValueError for one that is not measured."""
        wanted = self.early_stop.metric if self.early_stop is not None else None
        found = next((one for one in self.metrics if wanted in (None, one.label)), None)
        if found is None:
            raise ValueError(
                f"early_stop decides by {wanted!r}, which is not measured; the metrics are: "
                f"{', '.join(one.label for one in self.metrics)}"
            )
        return found

    @property
    def early_stop_key(self) -> dict[str, Any]:
        """What an early stop depends on besides the responses, as JSON."""
        assert self.early_stop is not None
        metric = self.early_stop_metric.model_dump(mode="json")
        stop = self.early_stop.model_dump(mode="json")
        return {"early_stop": stop, "metric": metric, "max_rows": self.max_rows, "samples": self.samples}

    @property
    def early_stop_bound(self) -> float:
        """The largest possible difference of a row in the test of `early_stop`."""
        assert self.early_stop is not None
        scale, against = self.early_stop_metric.scale, self.early_stop.against
        high = math.inf if scale.high is None else scale.high
        if isinstance(against, str):
            return high - scale.low
        return max(high - against, against - scale.low)

    @property
    def capability(self) -> str | None:
        """The engine, and the programs of the metrics."""
        return join_capabilities([super().capability, *(metric.capability for metric in self.metrics)])

    @property
    def models(self) -> dict[str, EvaluatedModel]:
        """All models by name, the first compared with the others."""
        baseline = {} if self.baseline is None else {BASELINE: self.baseline}
        return {MODEL: self.model, **baseline, **self.others}

    @property
    def engine_models(self) -> dict[str, Any]:
        """The models that need an engine of the stage's own."""
        return {
            name: model for name, model in self.models.items() if not isinstance(model, WEIGHTLESS_MODELS)
        }

    @property
    def scores_references(self) -> bool:
        """Whether a metric needs the log-probabilities of the references under each model."""
        return any(isinstance(metric, Perplexity) for metric in self.metrics)

    @property
    def chat_options(self) -> dict[str, Any]:
        """Fields of each request that are not sent unless they are set."""
        options = {"response_format": self.response_format, "reasoning_effort": self.reasoning_effort}
        return {name: value for name, value in options.items() if value is not None}

    @property
    def response_fields(self) -> tuple[str, ...]:
        """The fields of the dataset's rows that contain responses."""
        return tuple(model.field for model in self.models.values() if isinstance(model, StoredResponses))

    @property
    def slice_fields(self) -> tuple[str, ...]:
        """The fields of the dataset's rows whose values make slices."""
        return tuple(one for one in self.slices if isinstance(one, str))

    def with_engines(self, engines: Mapping[str, RunningEngine], pending: Sequence[str] = ()) -> Self:
        """Return the config with the addresses of engines, and the models whose engines are not running."""
        return self.model_copy(update={"engines": dict(engines), "pending": list(pending)})
