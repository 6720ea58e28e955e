"""Addresses and keys of the models that already generate, which a program gets as environment variables.

A config contains their names only, so neither an address nor a key is in a job, a run directory or a log.
"""

import json
import os
from dataclasses import dataclass, field

from trainers.configs.base import DeployedModel, ServedModel
from trainers.runtime.errors import ConfigInvalid

DEPLOYMENTS_VARIABLE = "TUNESMITH_DEPLOYMENT_ADDRESSES"


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint, and the name of the model in its requests."""

    base_url: str
    """Ends with the version, such as `/v1`, as in OpenAI's SDK."""
    model: str
    api_key: str = field(default="", repr=False)
    is_engine: bool = False
    """Whether it is an engine of this installation, on loopback or a private address."""

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}


def endpoint_variables(name: str) -> tuple[str, str]:
    """Return the names of the variables with an endpoint's address and key.

    The end of the second marks its value as a secret, which is removed from logs and files.
    """
    return f"TUNESMITH_ENDPOINT_{name.upper()}_URL", f"TUNESMITH_ENDPOINT_{name.upper()}_API_KEY"


def read_endpoint(model: ServedModel) -> Endpoint:
    """Return the address and the key of a model that already generates; raises ConfigInvalid."""
    if isinstance(model, DeployedModel):
        known = json.loads(os.environ.get(DEPLOYMENTS_VARIABLE, "{}"))
        if model.deployment not in known:
            raise ConfigInvalid(
                f"The address of the deployment {model.deployment!r} is unknown: a worker passes it.",
                "By hand, name an endpoint: {endpoint: local, model: NAME} with "
                "TUNESMITH_ENDPOINT_LOCAL_URL=http://127.0.0.1:8000/v1.",
            )
        address, name = known[model.deployment]
        return Endpoint(address, name, is_engine=True)
    url, key = endpoint_variables(model.endpoint)
    if not os.environ.get(url):
        raise ConfigInvalid(
            f"The address of the endpoint {model.endpoint!r} is unknown: {url} is not set.",
            f"Set {url} to a base URL such as https://api.example/v1, and {key} to its key. For a job, the "
            "operator names the endpoint in TUNESMITH_EVALUATION_ENDPOINTS.",
        )
    return Endpoint(os.environ[url].rstrip("/"), model.model, os.environ.get(key, ""))
