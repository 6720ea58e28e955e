"""The operator's account at OpenAI: its key for programs, and the models that it has."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from app.http.errors import HttpError, ServiceUnavailable, UnprocessableContent
from app.rescues.retirement import find_shutdown_date
from app.settings import Settings
from trainers.openai_account.client import (
    KEY_VARIABLE,
    URL_VARIABLE,
    AccountClient,
    AccountRefused,
    AccountUnavailable,
)
from trainers.openai_account.fine_tuned_models import (
    FineTunedModel,
    list_fine_tuned_models,
    list_shutdown_dates,
)
from trainers.openai_account.pace import Pace
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ConfigInvalid
from trainers.runtime.redaction import add_secrets

# Of a person who waits: a program is more patient.
READ_SECONDS, MAX_FAILURES = 30.0, 3
REQUESTS_PER_MINUTE = 600


class OpenaiKeyMissing(UnprocessableContent):
    """This process has no key of OpenAI."""

    code = ErrorCode.openai_key_missing


class OpenaiRefused(HttpError):
    """OpenAI refuses a request of this process."""

    code = ErrorCode.openai_refused


class OpenaiUnreachable(ServiceUnavailable):
    """OpenAI does not respond to this process."""

    code = ErrorCode.openai_unavailable


@dataclass(frozen=True)
class AccountModel:
    """A fine-tuned model, and when it is switched off, as far as that is known."""

    model: FineTunedModel
    shutdown_date: date | None

    @property
    def days_left(self) -> int | None:
        """Whole days until the model is switched off; None if the date is unknown."""
        return None if self.shutdown_date is None else (self.shutdown_date - date.today()).days


def openai_environment(settings: Settings) -> dict[str, str]:
    """Return the variables with which a program reaches OpenAI; both are empty without a key."""
    key = settings.openai_api_key.get_secret_value()
    # What the program writes is copied by this process, which must recognize the key.
    add_secrets([key, key.strip()])
    return {KEY_VARIABLE: key, URL_VARIABLE: settings.openai_base_url}


def list_account_models(settings: Settings) -> Sequence[AccountModel]:
    """Return the fine-tuned models of the account, newest first.

    Raises OpenaiKeyMissing, OpenaiRefused and OpenaiUnreachable.
    """
    key = settings.openai_api_key.get_secret_value()
    add_secrets([key, key.strip()])
    try:
        client = AccountClient(
            settings.openai_base_url, key, Pace(REQUESTS_PER_MINUTE), READ_SECONDS, MAX_FAILURES
        )
    except ConfigInvalid as error:
        raise OpenaiKeyMissing(error.message, hint=error.hint) from error
    try:
        with client:
            models = list(list_fine_tuned_models(client))
            announced = _list_announced(client)
    except AccountRefused as error:
        raise OpenaiRefused(error.message, hint=error.hint) from error
    except AccountUnavailable as error:
        raise OpenaiUnreachable(error.message, hint=error.hint) from error
    return [
        AccountModel(model, find_shutdown_date(model.fine_tuned_model, model.model, announced))
        for model in models
    ]


def _list_announced(client: AccountClient) -> dict[str, str]:
    """Return the dates of OpenAI's list of models, which a restricted key may not read."""
    try:
        return list_shutdown_dates(client)
    except AccountRefused:
        return {}
