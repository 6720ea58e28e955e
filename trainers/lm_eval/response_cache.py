"""The responses of a model, written as they arrive, from which an interrupted run resumes.

lm-eval's own cache stores pickles, which run code when they are read, and its keys do not contain the model.
Here a response is a line of JSON, and the file's name contains the hashes of model and adapter, the number
format and the versions.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from lm_eval.api.model import LM, hash_args

from trainers.runtime import run_dir as files

# A model may respond a thousand times a second with log-probabilities.
REPORT_SECONDS = 0.5
METHODS = ("loglikelihood", "loglikelihood_rolling", "generate_until")

logger = logging.getLogger("trainers")


class ResponseCache:
    """The responses of one model in a file; also lm-eval's hook, which is called with each response."""

    def __init__(self, path: Path, report: Callable[[int], None]) -> None:
        """Read the responses of an earlier attempt; `report` is called with the number of responses."""
        self._path = path
        self._report = report
        self._reported_at = time.monotonic()
        self._responses: dict[str, list[Any]] = {}
        self._added: Counter[str] = Counter()
        if files.has_partial_last_line(path):
            content = path.read_bytes()
            path.write_bytes(content[: content.rfind(b"\n") + 1])
        for line in files.read_lines(path):
            self._responses.setdefault(line["key"], []).append(_from_json(line["response"]))
        self._file = path.open("ab", buffering=0)
        self.count = sum(map(len, self._responses.values()))
        if self.count:
            logger.info("%d responses of an earlier attempt are reused.", self.count)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def attach(self, model: LM) -> None:
        """Let the model respond from the cache, and write what it responds itself."""
        for method in METHODS:
            setattr(model, method, self._wrap(method, getattr(model, method)))
        model.set_cache_hook(self)

    def add_partial(self, method: str, arguments: Sequence[Any], response: Any) -> None:
        """Write one response; called by lm-eval's models after each request or batch."""
        key = hash_args(method, arguments)
        self._write(key, response)
        self._added[key] += 1

    def _wrap(self, method: str, ask: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        def respond(requests: Sequence[Any], **options: Any) -> list[Any]:
            taken: Counter[str] = Counter()
            found = [self._take(method, request.args, taken) for request in requests]
            missing = [request for request, one in zip(requests, found, strict=True) if one is None]
            logger.info("%s: %d of %d requests are left.", method, len(missing), len(requests))
            self._added.clear()
            new = iter(ask(missing, **options) if missing else ())
            return [self._keep(method, request.args, next(new)) if one is None else one
                    for request, one in zip(requests, found, strict=True)]  # fmt: skip

        return respond

    def _take(self, method: str, arguments: Sequence[Any], taken: Counter[str]) -> Any | None:
        """Return the stored response, of a sampled request the next one that was not taken."""
        key = hash_args(method, arguments)
        stored = self._responses.get(key, [])
        position = taken[key] if _is_sampled(method, arguments) else 0
        taken[key] += 1
        return stored[position] if position < len(stored) else None

    def _keep(self, method: str, arguments: Sequence[Any], response: Any) -> Any:
        """Write a response that the model has not passed to the hook."""
        key = hash_args(method, arguments)
        if self._added[key]:
            self._added[key] -= 1
        else:
            self._write(key, response)
        return response

    def _write(self, key: str, response: Any) -> None:
        self._responses.setdefault(key, []).append(response)
        # Without fsync, which a task of log-probabilities would pay 40,000 times: a kill loses nothing of it.
        self._file.write(json.dumps({"key": key, "response": response}).encode() + b"\n")
        self.count += 1
        now = time.monotonic()
        if now - self._reported_at >= REPORT_SECONDS:
            self._reported_at = now
            self._report(self.count)


def _is_sampled(method: str, arguments: Sequence[Any]) -> bool:
    options = arguments[1] if method == "generate_until" else {}
    return bool(options.get("do_sample") or options.get("temperature"))


def _from_json(response: Any) -> Any:
    # A log-probability and whether the text is the most likely one.
    return tuple(response) if isinstance(response, list) else response
