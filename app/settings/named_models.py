"""What the names of models in requests stand for: endpoints, graders and bases of OpenAI."""

from typing import Annotated, Any

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
)
from pydantic_settings import BaseSettings

from app.settings.web_address import WebAddress
from trainers.configs import EngineKind, EngineOptions
from trainers.configs.base import EndpointName


class EvaluationEndpoint(BaseModel):
    """An OpenAI-compatible endpoint of the operator's."""

    model_config = ConfigDict(extra="forbid")

    url: WebAddress = Field(min_length=1, description="Base URL, up to the version, such as `…/v1`.")
    api_key: SecretStr = Field(SecretStr(""), description="Key that requests carry; empty sends none.")


class FineTuningBase(BaseModel):
    """The model that is trained in place of one of OpenAI's, and how the result is served."""

    model_config = ConfigDict(extra="forbid")

    base: str = Field(min_length=1, max_length=1024, description="A hub id, a folder, or a registry id.")
    engine: EngineKind | None = Field(None, description="Engine that serves the trained models.")
    options: EngineOptions = Field(EngineOptions(), description="Options of that engine.")
    training: dict[str, Any] = Field(
        default_factory=dict, description="Fields of the training stage, such as `preset` and `max_length`."
    )


class TokenPrices(BaseModel):
    """US dollars for a million tokens of a model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: float = Field(ge=0, le=1_000_000, description="Of prompts.")
    output: float = Field(ge=0, le=1_000_000, description="Of responses.")


def _name_base(value: Any) -> Any:
    return {"base": value} if isinstance(value, str) else value


class NamedModelSettings(BaseSettings):
    """What the names of models in requests stand for: endpoints, graders and bases of OpenAI."""

    evaluation_endpoints: dict[EndpointName, EvaluationEndpoint] = Field(
        default_factory=dict,
        description="OpenAI-compatible endpoints that evaluations may use as judges or evaluate, as JSON: "
        '`{"openai": {"url": "https://api.openai.com/v1", "api_key": "sk-…"}}`. A job names the endpoint; '
        "set the same names on the API, which checks them, and on the workers, which send the requests.",
    )
    grader_models: dict[str, str] = Field(
        default_factory=dict,
        description="Models of graders by the names in requests, as JSON: "
        '`{"gpt-4o-2024-08-06": "openai/gpt-4o-2024-08-06", "o4-mini": "judge"}`. Each is ENDPOINT/MODEL '
        "with an endpoint of TUNESMITH_EVALUATION_ENDPOINTS, or the name of a deployment.",
    )
    grader_embedding_model: str = Field(
        "",
        description="Embedding model of graders by `cosine` that name none, as ENDPOINT/MODEL, such as "
        "`openai/text-embedding-3-large`; empty refuses them.",
    )
    openai_models: dict[str, Annotated[FineTuningBase, BeforeValidator(_name_base)]] = Field(
        default_factory=dict,
        description='Models that are trained in place of OpenAI\'s, as JSON: `{"gpt-4o-mini-2024-07-18": '
        '"Qwen/Qwen2.5-7B-Instruct"}`. In place of the base, an object may set `base`, `engine`, `options` '
        "of the engine, and `training`, fields of the training stage.",
    )
    openai_api_key: SecretStr = Field(
        SecretStr(""),
        validation_alias=AliasChoices("TUNESMITH_OPENAI_API_KEY", "OPENAI_API_KEY"),
        description="Key of an organization at OpenAI whose fine-tuned models are rescued; "
        "`OPENAI_API_KEY` is used if this is unset. Set it on the workers that fetch and record, and on the "
        "API to list the models.",
    )
    openai_base_url: WebAddress = Field(
        "https://api.openai.com/v1",
        validation_alias=AliasChoices("TUNESMITH_OPENAI_BASE_URL", "OPENAI_BASE_URL"),
        description="Base URL of OpenAI's API for rescues, up to the version; `OPENAI_BASE_URL` is used "
        "if this is unset.",
    )
    openai_prices: dict[str, TokenPrices] = Field(
        default_factory=dict,
        description="US dollars for a million tokens of fine-tuned models at OpenAI by the name of their "
        'base, as JSON: `{"gpt-4o-mini-2024-07-18": {"input": 0.3, "output": 1.2}}`; they precede those of '
        "the guide on rescues.",
    )
    organization: str = Field(
        "tunesmith",
        pattern=r"^[a-z0-9][a-z0-9-]{0,62}$",
        description="Name of the organization in the names of fine-tuned models, and in `owned_by`.",
    )
    fine_tuned_engine: EngineKind = Field(
        EngineKind.hf, description="Engine of fine-tuned models whose base names none in OPENAI_MODELS."
    )
    fine_tuned_idle_seconds: float = Field(
        900,
        ge=0,
        description="Seconds without a request until a fine-tuned model is put to sleep; 0 means never.",
    )
