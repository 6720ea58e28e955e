"""Judgements of many rows: asked for at once, and kept in a file, so that none is paid for twice."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from trainers.configs.metrics.judge import JudgeConfig
from trainers.metrics.judge.prompts import JudgementInvalid, Messages
from trainers.metrics.judge.requests import JudgeAnswer, JudgeClient, JudgeFailed, JudgementMissing
from trainers.metrics.metric import ModelContext
from trainers.runtime import run_dir as files
from trainers.runtime.endpoints import read_endpoint

V = TypeVar("V")

logger = logging.getLogger("trainers")


@dataclass(frozen=True)
class JudgeRequest:
    """One question to the judge about the response of a model, `role`, to a row."""

    role: str
    row: int
    messages: Messages
    order: int = 1
    """1 if the response precedes what it is compared with, else 2."""


@dataclass(frozen=True)
class JudgeVerdict(Generic[V]):
    """The verdict on one request, or the reason that there is none."""

    value: V | None
    answer: JudgeAnswer | None = None
    error: str | None = None


def judge_all(
    config: JudgeConfig,
    requests: Sequence[JudgeRequest],
    read: Callable[[str], V],
    context: ModelContext,
    max_errors: int,
) -> list[JudgeVerdict[V]]:
    """Return the judgement of each request, in their order.

    Each answer is appended to the metric's file with its text. A request with an answer there is not sent
    again; one that failed is.

    Raises:
        JudgeFailed: More than `max_errors` requests have no verdict, or the endpoint rejects every request.
        ConfigInvalid: The judge's address is unknown.
    """
    kept = _AnswerFile(config, context.folder)
    judgements: dict[int, JudgeVerdict[V]] = {}
    missing: dict[int, JudgeRequest] = {}
    for position, request in enumerate(requests):
        judgement = kept.find(request, read)
        if judgement is None:
            missing[position] = request
        else:
            judgements[position] = judgement
    if missing:
        logger.info("%s: %d of %d judgements are stored", config.label, len(judgements), len(requests))
        for position, judgement in _ask(config, missing, read, max_errors):
            kept.append(requests[position], judgement)
            judgements[position] = judgement
    return [judgements[position] for position in range(len(requests))]


def _ask(
    config: JudgeConfig, requests: Mapping[int, JudgeRequest], read: Callable[[str], V], max_errors: int
) -> Iterator[tuple[int, JudgeVerdict[V]]]:
    """Yield the position and the judgement of each request, as they arrive."""
    client = JudgeClient(config, read_endpoint(config.judge))
    pool = ThreadPoolExecutor(config.concurrency)
    failed_rows: set[int] = set()
    try:
        futures = {
            pool.submit(_judge, client, request, read): position for position, request in requests.items()
        }
        for future in as_completed(futures):
            position, judgement = futures[future], future.result()
            yield position, judgement
            if judgement.error is not None:
                row = requests[position].row
                logger.warning("%s: row %d has no judgement: %s", config.label, row, judgement.error)
                failed_rows.add(row)
            if len(failed_rows) > max_errors:
                raise _too_many_errors(config, len(failed_rows), judgement.error)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        client.close()


def _judge(client: JudgeClient, request: JudgeRequest, read: Callable[[str], V]) -> JudgeVerdict[V]:
    answer = None
    try:
        answer = client.ask(request.messages)
        return JudgeVerdict(read(answer.text), answer)
    except (JudgementMissing, JudgementInvalid) as error:
        return JudgeVerdict(None, answer, str(error))


def _too_many_errors(config: JudgeConfig, n_rows: int, reason: str | None) -> JudgeFailed:
    count = "1 row" if n_rows == 1 else f"{n_rows} rows"
    return JudgeFailed(
        f"The judge {config.judge} gave no verdict on {count} so far, which is more than "
        f"`max_error_share` {config.max_error_share:g} allows. The last reason: {reason}",
        f"Read {config.label}.judgements.jsonl. Correct the rubric or the endpoint, or raise "
        "max_error_share. A retry asks only for the verdicts that are missing.",
    )


class _AnswerFile:
    """The file of a metric's judgements, a line for each, with the judge's text."""

    def __init__(self, config: JudgeConfig, folder: Path | None) -> None:
        self._config = config
        self._path = None if folder is None else folder / f"{config.label}.judgements.jsonl"
        self._answers = {} if self._path is None else _read_answers(self._path)

    def find(self, request: JudgeRequest, read: Callable[[str], V]) -> JudgeVerdict[V] | None:
        """Return the stored judgement of a request."""
        answer = self._answers.get(self._key(request))
        try:
            return None if answer is None else JudgeVerdict(read(answer.text), answer)
        except JudgementInvalid:
            return None

    def append(self, request: JudgeRequest, judgement: JudgeVerdict[Any]) -> None:
        """Store a judgement, also one without a verdict, which is asked for again after a retry."""
        if self._path is None:
            return
        answer = judgement.answer or JudgeAnswer("")
        line = {
            "role": request.role,
            "row": request.row,
            "order": request.order,
            "value": judgement.value,
            "error": judgement.error,
            "raw": answer.text,
            "model": answer.model,
            "usage": dict(answer.usage),
            "key": self._key(request),
        }
        files.append_line(self._path, line)

    def _key(self, request: JudgeRequest) -> str:
        """Return the hash of all that an answer depends on, and of the place of the request."""
        config = self._config
        sent = [config.judge.model_dump(), config.temperature, config.json_mode, request.messages]
        text = json.dumps([*sent, request.role, request.row, request.order])
        return hashlib.sha256(text.encode()).hexdigest()


def _read_answers(path: Path) -> dict[str, JudgeAnswer]:
    return {
        line["key"]: JudgeAnswer(line["raw"], line["model"], line["usage"])
        for line in files.read_lines(path)
        if line["error"] is None
    }
