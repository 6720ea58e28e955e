"""Graders of requests: their models resolved by the operator's table, and their needs checked."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from sqlmodel import Session

from app.deployments.served_models import explain_missing_model
from app.http.error_responses import list_field_errors
from app.http.errors import UnprocessableContent, field_error
from app.keys.limits import check_served_use
from app.settings import Settings
from trainers.configs.engines import split_capabilities
from trainers.configs.graders import GRADER, PYTHON_GRADER, Grader, grader_capability
from trainers.configs.references import find_served_models
from trainers.configs.stage_config import AnyStage

PYTHON_GRADERS_OFF = (
    "Python graders are off: they run code of a job's owner. The operator allows them by "
    "TUNESMITH_PYTHON_GRADERS=true on the API and the workers."
)


def read_grader(
    session: Session, values: Mapping[str, Any], settings: Settings, key_id: str, field: str = "grader"
) -> Grader:
    """Return the grader of a request, which is the content of its field `field`.

    A model that OpenAI names is replaced by the one that TUNESMITH_GRADER_MODELS names for it, and `cosine`
    gets the embedding model of the settings.

    Raises:
        UnprocessableContent: The grader is malformed, names a model that does not exist, or is in Python
            where the operator has not allowed that.
        ServedModelForbidden, DailyTokensUsed: The limits of the key do not allow a model.
    """
    named = name_models(values, settings)
    try:
        grader = GRADER.validate_python(named)
    except ValidationError as error:
        located = [{**one, "loc": ("body", *field.split("."), *one["loc"])} for one in error.errors()]
        fields = list_field_errors(located, _nest(field, named))
        message = f"{fields[0]['field']}: {fields[0]['message']}"
        raise UnprocessableContent(message, fields=fields) from None
    check_served_use(session, key_id, [grader])
    for path, model in find_served_models(grader):
        fault = explain_missing_model(session, model, settings, path)
        if fault is not None:
            raise field_error(f"{field}.{path}", fault)
    if _uses_python(grader) and not settings.python_graders:
        raise field_error(field, PYTHON_GRADERS_OFF)
    return grader


def parse_grader(values: Mapping[str, Any], settings: Settings) -> Grader:
    """Return a grader with the models of the settings, without looking for them.

    Raises ValueError, which pydantic's ValidationError is too, for a malformed one and for one in Python
    where the operator has not allowed that.
    """
    grader = GRADER.validate_python(name_models(values, settings))
    if _uses_python(grader) and not settings.python_graders:
        raise ValueError(PYTHON_GRADERS_OFF)
    return grader


def check_python_graders(stage: AnyStage, path: str, settings: Settings) -> Iterator[UnprocessableContent]:
    """Yield an error for a stage with a Python grader, unless the operator allows them."""
    if PYTHON_GRADER in split_capabilities(stage.capability) and not settings.python_graders:
        yield field_error(path, PYTHON_GRADERS_OFF)


def _uses_python(grader: Grader) -> bool:
    return PYTHON_GRADER in split_capabilities(grader_capability(grader))


def name_models(values: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Return the grader with the models of the settings in place of the names that OpenAI gives them."""
    named = dict(values)
    model = named.get("model")
    if isinstance(model, str):
        named["model"] = settings.grader_models.get(model, model)
    needs_embeddings = named.get("evaluation_metric") == "cosine" and "embedding_model" not in named
    if needs_embeddings and settings.grader_embedding_model:
        named["embedding_model"] = settings.grader_embedding_model
    graders = named.get("graders")
    if isinstance(graders, Mapping):
        if isinstance(graders.get("type"), str):
            named["graders"] = name_models(graders, settings)
        else:
            named["graders"] = {name: _name_any(one, settings) for name, one in graders.items()}
    elif isinstance(graders, list):
        named["graders"] = [_name_any(one, settings) for one in graders]
    return named


def _name_any(value: Any, settings: Settings) -> Any:
    # A grader inside a formula has no others inside.
    inner = {"graders": value["graders"]} if isinstance(value, Mapping) and "graders" in value else {}
    if not isinstance(value, Mapping):
        return value
    return name_models({name: one for name, one in value.items() if name != "graders"}, settings) | inner


def _nest(field: str, value: Any) -> Any:
    """Return the body whose field `field`, a dotted path, is the value."""
    for name in reversed(field.split(".")):
        value = {name: value}
    return value
