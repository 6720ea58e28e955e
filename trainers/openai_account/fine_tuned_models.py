"""The fine-tuned models of an account, from its fine-tuning jobs."""

import logging
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from trainers.openai_account.client import AccountClient

SUCCEEDED = "succeeded"
SUPERVISED, DPO, REINFORCEMENT = METHODS = ("supervised", "dpo", "reinforcement")
MAX_TOKENS = 2**53

logger = logging.getLogger("trainers")


def _read_object(value: Any) -> dict[str, Any] | None:
    """Return an object; what has another type, such as `"auto"`, says nothing that is needed here."""
    return value if isinstance(value, dict) else None


def _read_count(value: Any) -> int | None:
    return value if type(value) is int and 0 < value < MAX_TOKENS else None


OptionalObject = Annotated[dict[str, Any] | None, BeforeValidator(_read_object)]


class FineTunedModel(BaseModel):
    """A fine-tuned model with the job that trained it, by the names of OpenAI's fields."""

    model_config = ConfigDict(extra="ignore")

    id: str = Field(description="Id of the fine-tuning job at OpenAI, `ftjob-…`.")
    fine_tuned_model: str = Field(description="Name of the model, `ft:…`.")
    model: str = Field(description="The base that it was trained from.")
    created_at: int = Field(description="When the job was created, in seconds since 1970.")
    training_file: str = Field(description="Id of the training file.")
    validation_file: str | None = Field(None, description="Id of the validation file, if it had one.")
    hyperparameters: OptionalObject = Field(None, description="Hyperparameters of a supervised job.")
    method: OptionalObject = Field(None, description="Method with its hyperparameters and grader.")
    trained_tokens: Annotated[int | None, BeforeValidator(_read_count)] = Field(
        None, description="Tokens of the training file times the epochs."
    )
    seed: int | None = Field(None, description="Seed of the job.")

    @property
    def method_type(self) -> str:
        """`supervised`, `dpo` or `reinforcement`."""
        return str((self.method or {}).get("type") or SUPERVISED)

    @property
    def method_config(self) -> dict[str, Any]:
        """What the method contains: hyperparameters, and a grader for reinforcement."""
        config = (self.method or {}).get(self.method_type)
        return config if isinstance(config, dict) else {}

    @property
    def used_hyperparameters(self) -> dict[str, Any] | None:
        """The hyperparameters of the method, or of an older job; None if there are none."""
        return _read_object(self.method_config.get("hyperparameters")) or self.hyperparameters

    @property
    def epochs(self) -> int | None:
        """The number of epochs, if the job has one."""
        epochs = (self.used_hyperparameters or {}).get("n_epochs")
        return epochs if type(epochs) is int and epochs > 0 else None


def list_fine_tuned_models(client: AccountClient) -> Iterator[FineTunedModel]:
    """Yield the models of the jobs that succeeded, newest first; raises as `AccountClient.get`.

    A job without the fields that a rescue needs is logged, and hides no other.
    """
    for job in client.list_pages("/fine_tuning/jobs"):
        if job.get("status") == SUCCEEDED and job.get("fine_tuned_model"):
            try:
                model = FineTunedModel.model_validate(job)
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                place = ".".join(map(str, first["loc"]))
                logger.warning("OpenAI's job %s is left out: %s: %s", job.get("id"), place, first["msg"])
                continue
            yield model


def list_shutdown_dates(client: AccountClient) -> dict[str, str]:
    """Return the announced dates of shutdown (YYYY-MM-DD) by model, of those that have one."""
    return {
        str(model.get("id")): str(model["shutdown_date"])
        for model in client.get("/models").get("data") or []
        if isinstance(model, dict) and model.get("shutdown_date")
    }
