"""Completions of the model in training by an engine, which gets the adapter before each step.

All ranks sample with the same adapter: the first one writes it, and each engine loads it, under a name that
no other weights have had. On GPUs each rank has an engine on its own device; on a CPU all share that of the
first.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import httpx2
from torch import distributed

from trainers.runtime.errors import EngineFailed
from trainers.training.callback import wait_for_all
from trainers.training.on_policy.adapter_folders import AdapterFolders
from trainers.training.on_policy.engine_process import BASE_NAME, ENGINE_LOG, EngineChild

# Our engines complete a prompt at most so many times in one request.
MAX_CHOICES = 8
MAX_REQUESTS = 256
LOAD_SECONDS = 120.0
MIN_REQUEST_SECONDS = 0.1
MAX_ERROR_CHARACTERS = 500

TokenIds = list[int]


class EngineNotResponding(EngineFailed):
    """The engine runs, and has not responded in time."""


@dataclass(frozen=True)
class PromptGroup:
    """Consecutive rows with the same prompt, which one request completes; `row` is the first of them."""

    prompt: TokenIds
    count: int
    row: int


class EngineSampler:
    """An engine in the place of TRL's `VLLMGeneration`; `engine` is None on a rank that uses the first's."""

    def __init__(self, engine: EngineChild | None, run_dir: Path, seed: int, timeout_seconds: float) -> None:
        self._engine = engine
        self._timeout_seconds = timeout_seconds
        self._load_seconds = min(LOAD_SECONDS, timeout_seconds)
        self._run_dir = run_dir
        self._seed = seed
        self._url = "" if engine is None else engine.url
        self._adapter: str | None = None
        self._folders: AdapterFolders | None = None
        self._trainer: Any = None
        self._calls: tuple[Any, int] = (None, 0)
        limits = httpx2.Limits(max_connections=MAX_REQUESTS)
        self._client = httpx2.Client(trust_env=False, timeout=None, limits=limits)

    def bind(self, trainer: Any) -> None:
        """Sample from the model of this trainer."""
        self._trainer = trainer
        if trainer.accelerator.is_main_process:
            self._folders = AdapterFolders(self._run_dir, trainer.accelerator.unwrap_model(trainer.model))

    def close(self) -> None:
        """Remove the adapter's folder and close the connections."""
        if self._folders is not None:
            self._folders.close()
        self._client.close()

    def sync_weights(self) -> None:
        """Load the current adapter into every engine; each rank must call this.

        Raises:
            EngineFailed: An engine did not load it, or serves something else under its name.
        """
        folder = None if self._folders is None else self._folders.write()
        folder, url = _from_first_rank((folder, self._url))
        self._url = self._url or url
        if self._engine is not None and folder.name != self._adapter:
            self._replace_adapter(folder)
        self._adapter = folder.name
        wait_for_all()
        if self._folders is not None:
            self._folders.keep_only(folder)

    def rollout(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """Return one completion of each prompt of this rank, as TRL's `rollout_func` does."""
        prompt_ids, _, _ = trainer._tokenize_prompts(prompts)
        first = trainer.accelerator.process_index * len(prompts)
        state = (trainer.state.global_step, trainer.model.training)
        self._calls = (state, self._calls[1] + 1 if self._calls[0] == state else 0)
        groups = list(_group_prompts(prompt_ids, first))
        complete = partial(self._complete, deadline=time.monotonic() + self._timeout_seconds)
        with ThreadPoolExecutor(min(len(groups), MAX_REQUESTS)) as pool:
            completed = [one for choices in pool.map(complete, groups) for one in choices]
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": [tokens for tokens, _ in completed],
            "logprobs": [logprobs for _, logprobs in completed],
        }

    def _replace_adapter(self, folder: Path) -> None:
        if self._adapter is not None:
            self._post("/v1/unload_lora_adapter", {"lora_name": self._adapter}, self._load_seconds)
        body = {"lora_name": folder.name, "lora_path": str(folder)}
        self._post("/v1/load_lora_adapter", body, self._load_seconds)
        served = self._request("GET", "/v1/models", None, self._load_seconds).json()["data"]
        adapters = {model["id"]: model.get("root") for model in served if model["id"] != BASE_NAME}
        if adapters != {folder.name: str(folder)}:
            raise EngineFailed(
                f"The engine must serve one adapter, {folder.name} from {folder}; it serves {adapters}.",
                "Start the run again; if the error remains, use another version of the engine.",
            )

    def _complete(self, group: PromptGroup, deadline: float) -> list[tuple[TokenIds, list[float | None]]]:
        """Return the tokens of each completion of a prompt, with their log-probabilities.

        `deadline` is that of the whole step.
        """
        assert self._adapter is not None
        trainer = self._trainer
        body = {
            "model": self._adapter,
            "prompt": group.prompt,
            "n": group.count,
            "max_tokens": trainer.max_completion_length,
            "temperature": trainer.temperature,
            "seed": self._seed_of(group.row),
            "stop_token_ids": list(trainer.eos_token_ids),
            "logprobs": 0,
            "return_token_ids": True,
        }
        seconds = max(MIN_REQUEST_SECONDS, deadline - time.monotonic())
        try:
            response = self._post("/v1/completions", body, seconds).json()
        except EngineNotResponding as error:
            raise EngineFailed(
                f"The engine has not returned the completions of a step within {self._timeout_seconds:g} s "
                "(engine_timeout_seconds).",
                f"{self._log_hint} If a step needs longer, raise engine_timeout_seconds.",
            ) from error
        choices = [
            (choice["token_ids"], choice["logprobs"]["token_logprobs"]) for choice in response["choices"]
        ]
        fits = all(tokens and len(tokens) == len(logprobs) for tokens, logprobs in choices)
        if response["model"] != self._adapter or len(choices) != group.count or not fits:
            raise EngineFailed(
                f"The engine must return {group.count} completions of {self._adapter} with the "
                f"log-probability of each token; it returned {len(choices)} of {response['model']}, with "
                f"{[len(logprobs) for _, logprobs in choices]} log-probabilities for "
                f"{[len(tokens) for tokens, _ in choices]} tokens.",
                "Use a version of the engine that docs/engines.md names.",
            )
        return choices

    def _seed_of(self, row: int) -> int:
        """Return the seed of a row of the current step, from which those of its group count upwards."""
        (step, is_training), call = self._calls
        text = f"{self._seed}/{step}/{is_training}/{call}/{row}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])

    @property
    def _log_hint(self) -> str:
        log = ENGINE_LOG if self._engine is None else self._engine.log.name
        return f"Its log is {log} in the run directory."

    def _post(self, path: str, body: dict[str, Any], seconds: float) -> httpx2.Response:
        return self._request("POST", path, body, seconds)

    def _request(
        self, method: str, path: str, body: dict[str, Any] | None, seconds: float
    ) -> httpx2.Response:
        try:
            response = self._client.request(method, self._url + path, json=body, timeout=seconds)
        except httpx2.TransportError as error:
            end = self._engine.describe_end() if self._engine is not None else None
            reason = end or f"The engine did not respond to {path}: {error or type(error).__name__}."
            is_late = end is None and isinstance(error, httpx2.TimeoutException)
            raise (EngineNotResponding if is_late else EngineFailed)(reason, self._log_hint) from error
        if response.is_success:
            return response
        raise EngineFailed(
            f"The engine refused {path} with status {response.status_code}: "
            f"{response.text[:MAX_ERROR_CHARACTERS]}",
            self._log_hint,
        )


@contextmanager
def open_sampler(
    engine: EngineChild | None, run_dir: Path, seed: int, timeout_seconds: float
) -> Iterator[EngineSampler]:
    """Yield a sampler and close it at the end."""
    sampler = EngineSampler(engine, run_dir, seed, timeout_seconds)
    try:
        yield sampler
    finally:
        sampler.close()


def _group_prompts(prompts: Sequence[TokenIds], first_row: int) -> Iterator[PromptGroup]:
    """Yield the consecutive equal prompts, at most MAX_CHOICES at a time."""
    row = first_row
    for prompt, equal in groupby(prompts):
        while count := sum(1 for _ in islice(equal, MAX_CHOICES)):
            yield PromptGroup(prompt, count, row)
            row += count


def _from_first_rank(value: Any) -> Any:
    """Return the value of the first rank."""
    if not distributed.is_initialized():
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]
