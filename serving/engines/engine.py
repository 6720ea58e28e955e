"""What all engines have in common: how one is started, and how it is spoken to once it runs."""

import json
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from serving.http.addresses import is_private
from trainers.configs.engines import EngineKind, EngineOptions

HEALTH_TIMEOUT_SECONDS = 2.0
# Large weights may come over a network.
START_TIMEOUT_SECONDS = 1800.0
# A model may be compiled or warmed up by its first request.
PROBE_TIMEOUT_SECONDS = 60.0
LOAD_TIMEOUT_SECONDS = 120.0
# The engine may be busy with other requests while one prompt is scored.
SCORE_TIMEOUT_SECONDS = 300.0


class EngineRequestFailed(Exception):
    """The engine answered with an error, or not at all; the message says which, `status` is None if not."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class EngineConfig:
    """What an engine is to serve, and where.

    `model` is a folder or hub id of whole weights, `served_name` its name in requests, `adapters` maps
    further names to folders of LoRA adapters. An engine that has one chat template for all names takes that
    of its adapters, or of `template_from`, the folder of an adapter that comes later.
    """

    model: str
    served_name: str
    host: str
    port: int
    adapters: dict[str, str] = field(default_factory=dict)
    options: EngineOptions = field(default_factory=EngineOptions)
    template_from: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError for an address that everyone may reach: an engine asks nobody for a key."""
        if not is_private(self.host):
            raise ValueError(
                f"An engine asks for no key, and {self.host} is open to everyone: give a loopback or private "
                "address, and put `python -m serving.gateway` before it."
            )


class Engine(ABC):
    """One kind of engine; `program` is the command that starts it on this host, without its arguments."""

    kind: ClassVar[EngineKind]
    default_program: ClassVar[Sequence[str]]
    load_path: ClassVar[str] = "/v1/load_lora_adapter"
    unload_path: ClassVar[str] = "/v1/unload_lora_adapter"
    stop_seconds: ClassVar[float] = 10.0
    """How long it may take to end after SIGTERM."""
    auto_halves: ClassVar[bool] = False
    """Whether `dtype: auto` serves weights in 16 bits that are stored in float32."""

    def __init__(self, program: Sequence[str] = ()) -> None:
        self.program = list(program or self.default_program)

    @abstractmethod
    def command(self, serve: EngineConfig) -> list[str]:
        """The command that starts it; it ends by itself after SIGTERM."""

    def environment(self, serve: EngineConfig) -> dict[str, str]:
        """Variables that it needs beside those of its host."""
        return {}

    def request_name(self, base: str, adapter: str) -> str:
        """The name by which requests ask for an adapter on the base that is served as `base`."""
        return adapter

    def is_up(self, address: str) -> bool:
        """Whether it says that it is well, which `probe` alone can prove."""
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=HEALTH_TIMEOUT_SECONDS) as answer:  # noqa: S310
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def models(self, address: str) -> list[str]:
        """The names it answers to; raises EngineRefused."""
        listed = send_request(f"{address}/v1/models", None, HEALTH_TIMEOUT_SECONDS)
        return [model["id"] for model in listed["data"]]

    def probe(self, address: str, name: str) -> None:
        """Have one token generated under a served name; raises EngineRefused when none comes."""
        body = {"model": name, "prompt": "1", "max_tokens": 1, "temperature": 0}
        answer = send_request(f"{address}/v1/completions", body, PROBE_TIMEOUT_SECONDS)
        if not answer.get("choices"):
            raise EngineRequestFailed(f"The engine answered a prompt to {name!r} without a choice.")

    def running(self, address: str) -> int | None:
        """Answers under way; None where the engine does not tell, or does not answer."""
        return None

    def load_adapter(self, address: str, name: str, path: str) -> None:
        """Put an adapter beside the base while it runs; raises EngineRefused, also for a name in use."""
        send_request(address + self.load_path, {"lora_name": name, "lora_path": path}, LOAD_TIMEOUT_SECONDS)

    def unload_adapter(self, address: str, name: str) -> None:
        """Take an adapter out, which lets answers under way end; raises EngineRefused for an unknown name."""
        send_request(address + self.unload_path, {"lora_name": name}, LOAD_TIMEOUT_SECONDS)

    def render(self, address: str, name: str, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The token ids that a chat becomes, up to where the answer begins; raises EngineRefused."""
        body = {"model": name, "messages": list(messages), "add_generation_prompt": True}
        tokens: list[int] = send_request(f"{address}/tokenize", body, PROBE_TIMEOUT_SECONDS)["tokens"]
        return tokens

    def chat(
        self, address: str, name: str, messages: Sequence[Mapping[str, Any]], max_tokens: int
    ) -> tuple[str, int]:
        """The greedy answer to a chat, and how many tokens its prompt has; raises EngineRefused."""
        body = {"model": name, "messages": list(messages), "temperature": 0, "max_tokens": max_tokens}
        answer = send_request(f"{address}/v1/chat/completions", body, PROBE_TIMEOUT_SECONDS)
        return answer["choices"][0]["message"]["content"] or "", answer["usage"]["prompt_tokens"]

    def score(self, address: str, name: str, token_ids: Sequence[int]) -> list[float]:
        """Log-probability of each token given those before it; one fewer than tokens, as the first has none.

        Raises EngineRefused.
        """
        body = {"model": name, "prompt": list(token_ids), "max_tokens": 0, "echo": True, "logprobs": 0}
        answer = send_request(f"{address}/v1/completions", body, SCORE_TIMEOUT_SECONDS)
        scores: list[float] = answer["choices"][0]["logprobs"]["token_logprobs"][1:]
        if len(scores) != len(token_ids) - 1:
            raise EngineRequestFailed(f"{name!r} scored {len(scores) + 1} tokens of {len(token_ids)}.")
        return scores


def send_request(url: str, body: Any, seconds: float) -> Any:
    """The JSON (or text) of an answer; raises EngineRefused with the engine's own words."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:  # noqa: S310 — our own address
            return _decoded(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            raise EngineRequestFailed(
                f"{url} answered {error.code}: {_told(error.read())}", error.code
            ) from error
    except (urllib.error.URLError, OSError) as error:
        raise EngineRequestFailed(f"{url} did not answer: {error}") from error


def _told(body: bytes) -> str:
    answer = _decoded(body)
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    return str(error.get("message", error) if isinstance(error, dict) else error)[:1000]


def _decoded(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")
