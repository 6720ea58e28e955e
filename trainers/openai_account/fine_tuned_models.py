"""The fine-tuned models of an account, from its fine-tuning jobs."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from trainers.openai_account.client import AccountClient

SUCCEEDED = "succeeded"


class FineTunedModel(BaseModel):
    """A fine-tuned model with the job that trained it, by the names of OpenAI's fields."""

    model_config = ConfigDict(extra="ignore")

    id: str = Field(description="Id of the fine-tuning job at OpenAI, `ftjob-…`.")
    fine_tuned_model: str = Field(description="Name of the model, `ft:…`.")
    model: str = Field(description="The base that it was trained from.")
    created_at: int = Field(description="When the job was created, in seconds since 1970.")
    training_file: str = Field(description="Id of the training file.")
    validation_file: str | None = Field(None, description="Id of the validation file, if it had one.")
    hyperparameters: dict[str, Any] | None = Field(None, description="Hyperparameters of a supervised job.")
    method: dict[str, Any] | None = Field(None, description="Method with its hyperparameters and grader.")
    trained_tokens: int | None = Field(None, description="Tokens of the training file times the epochs.")
    seed: int | None = Field(None, description="Seed of the job.")

    @property
    def method_type(self) -> str:
        """`supervised`, `dpo` or `reinforcement`."""
        return str((self.method or {}).get("type") or "supervised")

    @property
    def method_config(self) -> dict[str, Any]:
        """What the method contains: hyperparameters, and a grader for reinforcement."""
        config = (self.method or {}).get(self.method_type)
        return config if isinstance(config, dict) else {}

    @property
    def epochs(self) -> int | None:
        """The number of epochs, if the job has one."""
        chosen = self.method_config.get("hyperparameters") or self.hyperparameters or {}
        epochs = chosen.get("n_epochs")
        return epochs if type(epochs) is int and epochs > 0 else None


def list_fine_tuned_models(client: AccountClient) -> Iterator[FineTunedModel]:
    """Yield the models of the jobs that succeeded, newest first; raises as `AccountClient.get`."""
    for job in client.list_pages("/fine_tuning/jobs"):
        if job.get("status") == SUCCEEDED and job.get("fine_tuned_model"):
            yield FineTunedModel.model_validate(job)


def list_shutdown_dates(client: AccountClient) -> dict[str, str]:
    """Return the announced dates of shutdown (YYYY-MM-DD) by model, of those that have one."""
    return {
        str(model.get("id")): str(model["shutdown_date"])
        for model in client.get("/models").get("data") or []
        if model.get("shutdown_date")
    }
