"""The model of a grader, which OpenAI names by a text."""

from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationError

from trainers.configs.base import DeployedModel, EndpointModel, ServedModel


def parse_grader_model(value: Any) -> Any:
    """Return the model that a text names, `ENDPOINT/MODEL` or a deployment; raises ValueError."""
    if not isinstance(value, str):
        return value
    endpoint, slash, model = value.partition("/")
    try:
        return EndpointModel(endpoint=endpoint, model=model) if slash else DeployedModel(deployment=value)
    except ValidationError:
        raise ValueError(
            f"{value[:200]!r} is neither the name of a deployment nor ENDPOINT/MODEL with the name of an "
            "endpoint in the settings"
        ) from None


GraderModel = Annotated[ServedModel, BeforeValidator(parse_grader_model)]
