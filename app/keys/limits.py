"""The limits of a key on what its requests cause later: jobs, runs of evals, graders, routes of aliases.

A gateway checks the requests that clients send to models. The programs of jobs send theirs to engines and
endpoints directly: the key's models are checked when the job is posted, and the tokens are counted for the
key as the program reports them (docs/decisions/0058).
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel
from sqlmodel import Session

from app.http.auth import require_scope
from app.http.errors import Forbidden, HttpError
from app.keys.token_use import count_tokens_today
from app.tables import ApiKey, Scope
from serving.gateway.rate_limits import AuthorizedClient
from trainers.configs import DeployConfig, PromoteConfig
from trainers.configs.base import EndpointModel, ServedModel
from trainers.configs.references import find_served_models
from trainers.runtime.error_codes import ErrorCode


class ServedModelForbidden(Forbidden):
    """The request would use a model that its key may not use."""

    code = ErrorCode.model_not_allowed


class DailyTokensUsed(HttpError):
    """The key has used its tokens of the day."""

    status = 429
    code = ErrorCode.insufficient_quota


def check_served_use(session: Session, key_id: str, configs: Iterable[BaseModel]) -> None:
    """Raise the error of a key that may not use a served model of these configs, or has no tokens left.

    The configs are not read for a key without such limits.

    Raises:
        ServedModelForbidden: Its `models` do not contain one.
        DailyTokensUsed: A config names a model, and the key has no tokens left today.
    """
    key = session.get(ApiKey, key_id) if key_id else None
    if key is None or (key.models is None and key.tokens_per_day is None):
        return
    configs = list(configs)
    names = [name for config in configs for name in list_model_names(config)]
    # A deployment takes its name from the one that has it, and uses no tokens.
    deployed = [config.deployment for config in configs if isinstance(config, DeployConfig)]
    check_names(session, key_id, [*names, *deployed])
    limit = key.tokens_per_day
    if names and limit is not None and count_tokens_today(session, [key_id]).get(key_id, 0) >= limit:
        now = datetime.now(UTC)
        midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        error = DailyTokensUsed(
            f"This API key has used its tokens of the day (limit: {limit}). More are available from "
            f"{midnight:%Y-%m-%dT%H:%MZ}."
        )
        # OpenAI's clients repeat a 429 within seconds unless the second header forbids it.
        error.headers = {
            "Retry-After": str(int((midnight - now).total_seconds()) + 1),
            "X-Should-Retry": "false",
        }
        raise error


def check_scope(session: Session, key_id: str, scope: Scope) -> None:
    """Raise Forbidden if the key lacks the scope; a service without keys has the empty id, which has all."""
    key = session.get(ApiKey, key_id) if key_id else None
    if key is not None:
        require_scope(key.scopes, scope)


def check_names(session: Session, key_id: str | None, names: Iterable[str]) -> None:
    """Raise ServedModelForbidden for the first name that the key may not use.

    A service without keys has the empty id, which may use all models, as a key whose record is deleted.
    """
    key = session.get(ApiKey, key_id) if key_id else None
    if key is None or key.models is None:
        return
    client = AuthorizedClient(models=tuple(key.models))
    for name in names:
        if not client.may_use(name):
            raise ServedModelForbidden(
                f"This API key may not use the model {name!r}. Allowed: {', '.join(key.models) or 'none'}.",
                hint="An admin changes `models` with PATCH /api/v1/keys/{key_id}.",
            )


def list_model_names(config: BaseModel) -> Iterator[str]:
    """Yield the names of the models that a config sends requests to, as the `models` of keys contain them.

    A promotion also gives its alias, and with it the clients, another deployment.
    """
    if isinstance(config, PromoteConfig):
        yield config.alias
        if config.deployment is not None:
            yield config.deployment
    for _, model in find_served_models(config):
        yield model_name(model)


def model_name(model: ServedModel) -> str:
    """Return the name of a model in the `models` of keys: a deployment, or `ENDPOINT/MODEL`."""
    return f"{model.endpoint}/{model.model}" if isinstance(model, EndpointModel) else model.deployment
