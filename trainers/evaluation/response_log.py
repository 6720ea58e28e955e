"""The responses of an evaluation, each of which is written as soon as it exists."""

import json
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from trainers.configs.stages.evaluate import EvaluateConfig
from trainers.evaluation.identity import identify
from trainers.rendering.render import dataset_path
from trainers.runtime import run_dir as files
from trainers.runtime.errors import ConfigInvalid

RESPONSES = EvaluateConfig.completions_file
# What is kept of the end of a first sample.
END_FIELDS = ("finish_reason", "prompt_tokens", "completion_tokens")
# A killed program loses nothing that was written; a host that loses power, no more than these.
SYNC_RESPONSES = 256
SYNC_SECONDS = 1.0

logger = logging.getLogger("trainers")

Key = tuple[str, int, int]
"""A model's name in the evaluation, a row, and a sample from 0."""


class ResponseLog:
    """`responses.jsonl`, whose first line identifies what its responses depend on.

    Each other line is a response, the scores of a reference, or what was known of an engine when it began:
    `model`, and `row`, `sample` and `prediction`; `scored_row` and `reference_logprobs`; or `engine`. An
    evaluation that stops early ends with `stopped_after`, the rows that it has completed, and `key`, what its
    stop depends on.
    """

    def __init__(self, path: Path, identity: str, *, discards_others: bool = False) -> None:
        """Open the file and read the responses that it has.

        Args:
            path: The file.
            identity: Hash of everything on which the responses depend.
            discards_others: Whether responses with another identity are removed rather than refused.

        Raises:
            ConfigInvalid: It has responses of other models, to other prompts or with other sampling.
        """
        if files.has_partial_last_line(path):
            content = path.read_bytes()
            path.write_bytes(content[: content.rfind(b"\n") + 1])
        lines = files.read_lines(path)
        is_other = bool(lines) and lines[0] != {"evaluation": identity}
        if is_other and discards_others:
            logger.warning("The models or the rows have changed: all responses are generated again.")
            path.unlink()
            lines = []
        elif is_other:
            raise ConfigInvalid(
                f"{path} contains responses of another evaluation: of other models, to other rows, or with "
                "other sampling.",
                "Name another run directory, or remove the file to generate all responses again.",
            )
        self._responses: dict[Key, str | None] = {}
        self._engines: dict[str, list[dict[str, Any]]] = {}
        self._tool_calls: dict[str, dict[int, list[dict[str, Any]]]] = {}
        self._ends: dict[str, dict[int, dict[str, Any]]] = {}
        self._references: dict[str, dict[int, list[float] | None]] = {}
        self._errors: dict[str, str] = {}
        for line in lines[1:]:
            self._remember(line)
        self._lock = threading.Lock()
        self._file: TextIO = path.open("a", encoding="utf-8")
        self._unsynced, self._synced_at = 0, time.monotonic()
        if not lines:
            self._write({"evaluation": identity})

    def __len__(self) -> int:
        """Return the number of responses."""
        return len(self._responses)

    def __contains__(self, key: Key) -> bool:
        """Return whether the response exists."""
        return key in self._responses

    def add(self, key: Key, completion: Mapping[str, Any]) -> None:
        """Append a response, from any thread; it survives this process at once, and the host soon."""
        model, row, sample = key
        line = {"model": model, "row": row, "sample": sample, **completion}
        with self._lock:
            self._remember(line)
            self._write(line)

    def add_engine(self, model: str, facts: Mapping[str, Any]) -> None:
        """Append what is known of the engine from which the next responses of a model come, once."""
        if self._engines.get(model, [])[-1:] == [dict(facts)]:
            return
        line = {"model": model, "engine": dict(facts)}
        self._remember(line)
        self._write(line)

    def add_reference(self, model: str, row: int, logprobs: list[float] | None) -> None:
        """Append the log-probabilities of a row's reference under a model; None if it cannot be scored."""
        line = {"model": model, "scored_row": row, "reference_logprobs": logprobs}
        self._remember(line)
        self._write(line)

    def add_stop(self, n_rows: int, key: Mapping[str, Any]) -> None:
        """Append that the evaluation ends after so many rows; `key` is what the decision depends on."""
        with self._lock:
            self._write({"stopped_after": n_rows, "key": dict(key)})

    def list_references(self, model: str) -> dict[int, list[float] | None]:
        """Return the log-probabilities of the references under a model, by row."""
        return self._references.get(model, {})

    def list_samples(self, model: str, rows: Sequence[int], samples: int) -> dict[int, list[str | None]]:
        """Return the samples of one model by row."""
        return {row: [self._responses[model, row, sample] for sample in range(samples)] for row in rows}

    def list_tool_calls(self, model: str) -> dict[int, list[dict[str, Any]]]:
        """Return the tool calls of a model's first samples, for the rows that have any."""
        return self._tool_calls.get(model, {})

    def list_ends(self, model: str) -> dict[int, dict[str, Any]]:
        """Return why and after how many tokens a model's first samples ended, by row."""
        return self._ends.get(model, {})

    def get_first_error(self, model: str) -> str:
        """Return why the engine has rejected a request for a model; empty if it has rejected none."""
        return self._errors.get(model, "")

    def list_engines(self, model: str) -> list[dict[str, Any]]:
        """Return the engines from which a model's responses come, each once, the first one first."""
        found = self._engines.get(model, [])
        return [facts for position, facts in enumerate(found) if facts not in found[:position]]

    def close(self) -> None:
        """Make all responses durable."""
        with self._lock:
            self._sync()
            self._file.close()

    def _remember(self, line: Mapping[str, Any]) -> None:
        if "stopped_after" in line:
            return
        if "engine" in line:
            self._engines.setdefault(line["model"], []).append(line["engine"])
        elif "scored_row" in line:
            scored = self._references.setdefault(line["model"], {})
            scored[line["scored_row"]] = line["reference_logprobs"]
        else:
            self._responses[line["model"], line["row"], line["sample"]] = line["prediction"]
            if line.get("error"):
                self._errors.setdefault(line["model"], str(line["error"]))
            if line["sample"] != 0:
                return
            ends = self._ends.setdefault(line["model"], {})
            ends[line["row"]] = {name: line[name] for name in END_FIELDS if name in line}
            if line.get("tool_calls"):
                self._tool_calls.setdefault(line["model"], {})[line["row"]] = line["tool_calls"]

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()
        self._unsynced += 1
        if self._unsynced >= SYNC_RESPONSES or time.monotonic() - self._synced_at >= SYNC_SECONDS:
            self._sync()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._unsynced, self._synced_at = 0, time.monotonic()


def has_all_responses(config: EvaluateConfig, role: str, run_dir: Path) -> bool:
    """Return whether a run directory has every response of a model; it may not be this evaluation's."""
    lines = files.read_lines(run_dir / RESPONSES)
    if not lines or lines[0] != {"evaluation": identify(config)}:
        return False
    with dataset_path(config.dataset).open("rb") as file:
        n_rows = sum(1 for line in file if line.strip())
    found = {
        (line["row"], line["sample"]) for line in lines[1:] if line.get("model") == role and "row" in line
    }
    n_expected = min(n_rows, config.max_rows or n_rows)
    if config.early_stop is not None:
        stops = (line["stopped_after"] for line in lines if line.get("key") == config.early_stop_key)
        n_expected = min(n_expected, next(stops, n_expected))
    scored = {line["scored_row"] for line in lines[1:] if line.get("model") == role and "scored_row" in line}
    if config.scores_references and len(scored) < n_expected:
        return False
    return len(found) == n_expected * config.samples
