"""Answers to the rows of a file by a running engine: in order, several at once, resumable."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from serving.engines.engine import EngineRequestFailed, send_request
from trainers.configs.stages.generate import GenerateConfig
from trainers.rendering.render import PromptCompletion, read_prompts
from trainers.runtime import run_dir as files
from trainers.runtime.errors import DatasetInvalid, EngineFailed

ANSWER_SECONDS = 3600.0
# What a client did wrong in one row does not end the others.
ROW_FAULTS = {400, 413, 422}

logger = logging.getLogger("trainers")


def questions(config: GenerateConfig) -> list[PromptCompletion]:
    """What is asked by each row; raises DatasetNotFound, or DatasetInvalid naming the row."""
    return [_under(config.system_prompt, pair) for pair in read_prompts(config.dataset, config.max_rows)]


def unanswered(asked: Sequence[PromptCompletion], output: Path) -> Sequence[PromptCompletion]:
    """The rows that have no line in `output` yet; raises DatasetInvalid if it answers something else.

    A line that a killed program has left half written is cut off.
    """
    if files.has_partial_last_line(output):
        whole = output.read_bytes()
        output.write_bytes(whole[: whole.rfind(b"\n") + 1])
    kept = files.read_lines(output)
    differing = [line for line, pair in zip(kept, asked, strict=False) if line["prompt"] != pair.prompt]
    if differing or len(kept) > len(asked):
        row = (differing or kept[len(asked) :])[0]["row"]
        raise DatasetInvalid(
            f"{output} holds an answer to row {row} of another batch: its prompt is not that of this one.",
            "Name another output, or remove it to answer all rows again.",
        )
    return asked[len(kept) :]


def answer(
    config: GenerateConfig,
    asked: Sequence[PromptCompletion],
    address: str,
    name: str,
    output: Path,
    told: Callable[[int], None],
) -> None:
    """Append a line to `output` for each row, and tell how many there are; raises EngineFailed.

    Rows that the engine refuses, such as one that is too long, get an `error` in place of an answer. A line
    is written when all before it are, so a stopped program loses the few rows that it was working on.
    """
    pool = ThreadPoolExecutor(config.concurrency)
    try:
        for done, line in enumerate(_in_order(pool, config, asked, address, name), start=1):
            files.append_line(output, line)
            told(done)
    finally:
        # Whoever stops us does not wait for long answers; the engine ends them when it stops.
        pool.shutdown(wait=False, cancel_futures=True)


def _in_order(
    pool: ThreadPoolExecutor,
    config: GenerateConfig,
    asked: Sequence[PromptCompletion],
    address: str,
    name: str,
) -> Iterator[dict[str, Any]]:
    """Answers in the order of the rows, with so many under way that the engine always has enough to do."""
    waiting: deque[Future[dict[str, Any]]] = deque()
    for pair in asked:
        waiting.append(pool.submit(_line, config, pair, address, name))
        if len(waiting) == 2 * config.concurrency:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _line(config: GenerateConfig, pair: PromptCompletion, address: str, name: str) -> dict[str, Any]:
    line: dict[str, Any] = {"row": pair.row, "prompt": pair.prompt, "reference": pair.completion_text or None}
    body = {
        "model": name,
        "messages": pair.prompt,
        "max_tokens": config.max_new_tokens,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "seed": config.seed + pair.row,
        **({"tools": pair.tools} if pair.tools else {}),
    }
    try:
        answer = send_request(f"{address}/v1/chat/completions", body, ANSWER_SECONDS)
    except EngineRequestFailed as refused:
        if refused.status not in ROW_FAULTS:
            raise EngineFailed(
                f"The engine failed on row {pair.row}: {refused}",
                "Start the same command again: it goes on after the last row that was written.",
            ) from refused
        logger.warning("row %d has no answer: %s", pair.row, refused)
        return line | {"prediction": None, "error": str(refused)}
    choice = answer["choices"][0]
    told = {"prediction": choice["message"]["content"], "finish_reason": choice["finish_reason"]}
    return line | told | {"completion_tokens": answer["usage"]["completion_tokens"]}


def _under(system_prompt: str | None, pair: PromptCompletion) -> PromptCompletion:
    """The pair with this system message in place of its own."""
    if system_prompt is None:
        return pair
    others = [message for message in pair.prompt if message["role"] != "system"]
    return replace(pair, prompt=[{"role": "system", "content": system_prompt}, *others])
