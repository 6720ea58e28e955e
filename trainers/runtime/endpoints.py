"""The models that already generate: addresses and keys, from the environment, and the tokens that they cost.

A config contains their names only, so neither an address nor a key is in a job, a run directory or a log. The
worker counts the tokens for the key that has created the job; those of an engine that it has started for the
stage alone are not counted, because that engine is part of the job.
"""

import json
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.configs.base import DeployedModel, ServedModel
from trainers.runtime.errors import ConfigInvalid
from trainers.runtime.run_dir import MODEL_USE

if TYPE_CHECKING:
    import httpx2

DEPLOYMENTS_VARIABLE = "TUNESMITH_DEPLOYMENT_ADDRESSES"
# Without the endpoint's own count, as the gateway estimates it.
BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint, and the name of the model in its requests."""

    base_url: str
    """Ends with the version, such as `/v1`, as in OpenAI's SDK."""
    model: str
    api_key: str = field(default="", repr=False)
    is_engine: bool = False
    """Whether it is an engine of this installation, on loopback or a private address."""
    is_metered: bool = False
    """Whether its tokens count for the key that created the job: it was not started for the job."""

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
        return Endpoint(address, name, is_engine=True, is_metered=True)
    url, key = endpoint_variables(model.endpoint)
    if not os.environ.get(url):
        raise ConfigInvalid(
            f"The address of the endpoint {model.endpoint!r} is unknown: {url} is not set.",
            f"Set {url} to a base URL such as https://api.example/v1, and {key} to its key. For a job, the "
            "operator names the endpoint in TUNESMITH_EVALUATION_ENDPOINTS.",
        )
    return Endpoint(os.environ[url].rstrip("/"), model.model, os.environ.get(key, ""), is_metered=True)


class TokenMeter:
    """The tokens of this process, for use by several threads; with a file, each response appends a line."""

    def __init__(self) -> None:
        self.total = 0
        self._lock = threading.Lock()
        self._file: int | None = None

    def open(self, run_dir: Path) -> None:
        """Append to the file of a run directory, to which the ranks of a program append together."""
        self._file = os.open(run_dir / MODEL_USE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def add(self, response: "httpx2.Response") -> None:
        """Count the tokens of a response."""
        tokens = count_tokens(response)
        with self._lock:
            self.total += tokens
        if tokens and self._file is not None:
            # One call: lines of several processes do not mix.
            os.write(self._file, b"%d\n" % tokens)


METER = TokenMeter()


def count_tokens(response: "httpx2.Response") -> int:
    """Return the tokens of a request and its response, estimated where the endpoint does not report them."""
    try:
        usage = response.json().get("usage")
    except (ValueError, AttributeError):
        usage = None
    if isinstance(usage, dict):
        counts: list[Any] = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
        known = [count for count in counts if type(count) is int and count >= 0]
        if known:
            return sum(known)
    return (len(response.request.content) + len(response.content)) // BYTES_PER_TOKEN
