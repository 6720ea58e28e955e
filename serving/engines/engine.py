"""The interface of an engine: how to start it, and how to call it once it runs."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import httpx2

from serving.http.addresses import is_private
from trainers.configs.engines import EngineKind, EngineOptions, EngineTask, Pooling
from trainers.modeling.model_source import OFFLINE
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError

HEALTH_TIMEOUT_SECONDS = 2.0
# Large weights may be read over a network.
START_TIMEOUT_SECONDS = 1800.0
# The first request may compile or warm up a model.
PROBE_TIMEOUT_SECONDS = 60.0
LOAD_TIMEOUT_SECONDS = 120.0
# Scoring one prompt may wait for other requests.
SCORE_TIMEOUT_SECONDS = 300.0
MAX_ERROR_CHARACTERS = 1000
PROBE_MESSAGES = ({"role": "user", "content": "1"},)
# Statuses of an engine that works, but does not complete chats with this model.
CHAT_REFUSED = (400, 404, 422)
TEMPLATE_FAILURES = (
    ErrorCode.template_too_slow,
    ErrorCode.template_too_large,
    ErrorCode.template_unsafe,
    ErrorCode.template_invalid,
)


EnginePrompt = str | Sequence[Mapping[str, Any]]
"""The messages of a chat, or a text for a model without a chat template."""


class EngineRequestFailed(TunesmithError):
    """An error response of an engine, or no response: then `status` is None."""

    code = ErrorCode.engine_failed

    def __init__(self, message: str, status: int | None = None, engine_code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.engine_code = engine_code
        """The code in the response's error object."""


@dataclass(frozen=True)
class EngineConfig:
    """The model that an engine serves, and the address that it listens on.

    Attributes:
        model: Verified folder of whole weights.
        served_name: Name of the model in requests.
        host: Loopback or private address.
        port: Port to listen on.
        adapters: Folders of LoRA adapters by their names in requests.
        options: Options that all engines share.
        template_from: Folder of an adapter that will be loaded later. An engine with one chat template for
            all names takes the template of its adapters, or of this one.
        task: What the engine computes.
        pooling: Pooling of an embedding model whose files have none.
    """

    model: str
    served_name: str
    host: str
    port: int
    adapters: dict[str, str] = field(default_factory=dict)
    options: EngineOptions = field(default_factory=EngineOptions)
    template_from: str = ""
    task: EngineTask = EngineTask.generate
    pooling: Pooling | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a public address."""
        check_host(self.host)


def check_host(host: str) -> None:
    """Raise ValueError for a public address, since engines do not authenticate requests."""
    if not is_private(host):
        raise ValueError(
            f"The host {host} is a public address, and an engine does not check API keys. Use a "
            "loopback or private address, and start `python -m serving.gateway` in front of the engine."
        )


class Engine(ABC):
    """One kind of engine; `program` is the command that starts it on this host, without arguments."""

    kind: ClassVar[EngineKind]
    default_program: ClassVar[Sequence[str]]
    load_path: ClassVar[str] = "/v1/load_lora_adapter"
    unload_path: ClassVar[str] = "/v1/unload_lora_adapter"
    stop_seconds: ClassVar[float] = 10.0
    """Time that the engine needs to exit after SIGTERM."""
    auto_dtype_is_16_bit: ClassVar[bool] = False
    """Whether `dtype: auto` converts float32 weights to 16 bits."""

    def __init__(self, program: Sequence[str] = ()) -> None:
        self.program = list(program or self.default_program)

    @abstractmethod
    def command(self, config: EngineConfig) -> list[str]:
        """Return the command that starts the engine; its process exits after SIGTERM."""

    def environment(self, config: EngineConfig) -> dict[str, str]:
        """Return the environment variables that the engine needs in addition to the host's.

        Its model is a folder that has been verified, so that no engine has a reason to use the hub.
        """
        return dict(OFFLINE)

    def request_name(self, base: str, adapter: str) -> str:
        """Return the name that requests must use for an adapter on the base served as `base`."""
        return adapter

    def is_healthy(self, address: str) -> bool:
        """Return whether the health endpoint responds with 200; `probe` proves that requests are served."""
        try:
            response = _client().get(f"{address}/health", timeout=HEALTH_TIMEOUT_SECONDS)
        except httpx2.TransportError:
            return False
        return response.status_code == 200

    def list_models(self, address: str) -> list[str]:
        """Return the served names. Raises EngineRequestFailed."""
        response = send_request(f"{address}/v1/models", None, HEALTH_TIMEOUT_SECONDS)
        return [model["id"] for model in response["data"]]

    def probe(
        self,
        address: str,
        name: str,
        timeout_seconds: float = PROBE_TIMEOUT_SECONDS,
        task: EngineTask = EngineTask.generate,
    ) -> None:
        """Complete a chat with a served model by one token, or embed a text, as the task says.

        A model that has no chat template, or whose template rejects the chat, completes a text instead.

        Raises:
            EngineRequestFailed: The engine failed, or did not respond in time.
        """
        if task is EngineTask.embed:
            self.embed(address, name, ["1"], timeout_seconds)
            return
        options = {"model": name, "max_tokens": 1, "temperature": 0}
        try:
            body = options | {"messages": PROBE_MESSAGES}
            response = send_request(f"{address}/v1/chat/completions", body, timeout_seconds)
        except EngineRequestFailed as error:
            if error.status not in CHAT_REFUSED or error.engine_code in TEMPLATE_FAILURES:
                raise
            body = options | {"prompt": "1"}
            response = send_request(f"{address}/v1/completions", body, timeout_seconds)
        if not response.get("choices"):
            raise EngineRequestFailed(f"The engine returned a completion of {name!r} without choices.")

    def embed(
        self, address: str, name: str, texts: Sequence[str], timeout_seconds: float = SCORE_TIMEOUT_SECONDS
    ) -> list[list[float]]:
        """Return the embedding of each text.

        Raises:
            EngineRequestFailed: The engine failed, did not respond in time, or not with finite numbers.
        """
        body = {"model": name, "input": list(texts), "encoding_format": "float"}
        response = send_request(f"{address}/v1/embeddings", body, timeout_seconds)
        embeddings: list[list[float]] = [row["embedding"] for row in response["data"]]
        if len(embeddings) != len(texts) or not all(one and all(map(_is_finite, one)) for one in embeddings):
            raise EngineRequestFailed(f"The engine returned embeddings of {name!r} that are not numbers.")
        return embeddings

    def count_requests(self, address: str) -> int | None:
        """Return the number of running and waiting requests, or None if the engine does not report it."""
        return None

    def load_adapter(self, address: str, name: str, path: str) -> None:
        """Load an adapter while the engine runs. Raises EngineRequestFailed, also for a name in use."""
        send_request(address + self.load_path, {"lora_name": name, "lora_path": path}, LOAD_TIMEOUT_SECONDS)

    def unload_adapter(self, address: str, name: str) -> None:
        """Unload an adapter after its running requests. Raises EngineRequestFailed for an unknown name."""
        send_request(address + self.unload_path, {"lora_name": name}, LOAD_TIMEOUT_SECONDS)

    def render(self, address: str, name: str, prompt: EnginePrompt) -> list[int]:
        """Return the prompt's token ids of a chat or a text. Raises EngineRequestFailed."""
        chat = {"messages": list(prompt), "add_generation_prompt": True}
        body = {"model": name, **({"prompt": prompt} if isinstance(prompt, str) else chat)}
        tokens: list[int] = send_request(f"{address}/tokenize", body, PROBE_TIMEOUT_SECONDS)["tokens"]
        return tokens

    def complete(self, address: str, name: str, prompt: EnginePrompt, max_tokens: int) -> tuple[str, int]:
        """Return the greedy completion of a chat or a text, and its prompt's token count.

        Raises:
            EngineRequestFailed: The engine did not respond, or with an error.
        """
        body = {"model": name, "temperature": 0, "max_tokens": max_tokens}
        if isinstance(prompt, str):
            url = f"{address}/v1/completions"
            response = send_request(url, {**body, "prompt": prompt}, PROBE_TIMEOUT_SECONDS)
            return response["choices"][0]["text"], response["usage"]["prompt_tokens"]
        url = f"{address}/v1/chat/completions"
        response = send_request(url, {**body, "messages": list(prompt)}, PROBE_TIMEOUT_SECONDS)
        return response["choices"][0]["message"]["content"] or "", response["usage"]["prompt_tokens"]

    def score(self, address: str, name: str, token_ids: Sequence[int]) -> list[float]:
        """Return the log-probability of each token but the first, given the tokens before it.

        Raises:
            EngineRequestFailed: The engine failed, or scored another number of tokens.
        """
        body = {"model": name, "prompt": list(token_ids), "max_tokens": 0, "echo": True, "logprobs": 0}
        response = send_request(f"{address}/v1/completions", body, SCORE_TIMEOUT_SECONDS)
        scores: list[float] = response["choices"][0]["logprobs"]["token_logprobs"][1:]
        if len(scores) != len(token_ids) - 1:
            raise EngineRequestFailed(
                f"The engine scored {len(scores) + 1} of the {len(token_ids)} tokens that {name!r} was sent."
            )
        return scores


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def send_request(url: str, body: Any, timeout_seconds: float) -> Any:
    """POST a JSON body, or GET without one, and return the response's JSON, or its text.

    Raises:
        EngineRequestFailed: The engine did not respond, or with an error, whose message is included.
    """
    method = "GET" if body is None else "POST"
    try:
        response = _client().request(method, url, json=body, timeout=timeout_seconds)
    except (httpx2.TransportError, httpx2.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise EngineRequestFailed(f"{method} {url} got no response: {reason}.") from error
    content = _decode(response)
    if response.is_success:
        return content
    raise EngineRequestFailed(
        f"{method} {url} failed with status {response.status_code}: {_error_message(content)}",
        response.status_code,
        _error_code(content),
    )


@cache
def _client() -> httpx2.Client:
    """Return a client that opens a connection for each request, so that engines may restart in between.

    It is shared, because creating one loads TLS certificates. Proxies of the environment are ignored: engines
    listen on loopback or private addresses.
    """
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx2.Client(limits=limits, trust_env=False)


def _decode(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return response.text


def _error_message(content: Any) -> str:
    """Return the message of an error response: engines send OpenAI's error object, others, or text."""
    error = content.get("error", content) if isinstance(content, dict) else content
    return str(error.get("message", error) if isinstance(error, dict) else error)[:MAX_ERROR_CHARACTERS]


def _error_code(content: Any) -> str | None:
    error = content.get("error") if isinstance(content, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) else None
