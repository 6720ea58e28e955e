"""Answers to the rows of a file by a running engine: in order, several at once, resumable."""

import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from serving.engines.engine import EngineRefused, call
from trainers import run_dir as files
from trainers.configs.generate import GenerateConfig
from trainers.data.conversation import as_messages, prompt_completions, prompt_of
from trainers.data.formats import RowFormat, detect_format
from trainers.errors import DatasetInvalid, EngineFailed
from trainers.render import dataset_path, read_rows

ANSWER_SECONDS = 3600.0
# What a client did wrong in one row does not end the others.
ROW_FAULTS = range(400, 429)

Messages = list[dict[str, Any]]
Prompt = tuple[int, Messages, str | None]
"""The line of a row from 1, its messages up to the answer, and the answer that it holds, if any."""

logger = logging.getLogger("trainers")


def prompts(config: GenerateConfig) -> list[Prompt]:
    """What is asked by each row; raises DatasetNotFound, or DatasetInvalid naming the row."""
    path = dataset_path(config.dataset)
    return [_prompt(number, row, config, path) for number, row in islice(read_rows(path), config.max_rows)]


def answer_all(
    config: GenerateConfig,
    asked: list[Prompt],
    address: str,
    name: str,
    output: Path,
    progress: Callable[[int], None],
) -> None:
    """Append a line to `output` for each row that has none yet; raises EngineFailed when the engine dies.

    Rows that the engine refuses, such as one that is too long, get an `error` in place of an answer. A line
    is written when all before it are, so a stopped program loses the few rows that it was working on.
    """
    _mend(output)
    kept = len(kept_lines(output))
    progress(kept)
    pool = ThreadPoolExecutor(config.concurrency)
    try:
        with output.open("a", encoding="utf-8") as file:
            for done, line in enumerate(_in_order(pool, config, asked[kept:], address, name), start=kept + 1):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()
                progress(done)
    finally:
        # Whoever stops us does not wait for long answers; the engine ends them when it stops.
        pool.shutdown(wait=False, cancel_futures=True)


def kept_lines(output: Path) -> list[dict[str, Any]]:
    """The answers that an earlier start has left."""
    return list(files.read_lines(output))


def _mend(output: Path) -> None:
    """Cut a line off that a killed program has left half written."""
    if output.exists() and files.ends_torn(output):
        whole = output.read_bytes()
        output.write_bytes(whole[: whole.rfind(b"\n") + 1])


def _in_order(
    pool: ThreadPoolExecutor, config: GenerateConfig, asked: list[Prompt], address: str, name: str
) -> Iterator[dict[str, Any]]:
    """Answers in the order of the rows, with so many under way that the engine always has enough to do."""
    window = 2 * config.concurrency
    waiting = [pool.submit(_answer, config, prompt, address, name) for prompt in asked[:window]]
    try:
        for following in range(window, len(asked) + window):
            if not waiting:
                return
            yield waiting.pop(0).result()
            if following < len(asked):
                waiting.append(pool.submit(_answer, config, asked[following], address, name))
    finally:
        for future in waiting:
            future.cancel()


def _answer(config: GenerateConfig, prompt: Prompt, address: str, name: str) -> dict[str, Any]:
    row, messages, reference = prompt
    line: dict[str, Any] = {"row": row, "prompt": messages, "reference": reference}
    body = {
        "model": name,
        "messages": messages,
        "max_tokens": config.max_new_tokens,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "seed": config.seed + row,
    }
    try:
        answer = call(f"{address}/v1/chat/completions", body, ANSWER_SECONDS)
    except EngineRefused as refused:
        if refused.status not in ROW_FAULTS:
            raise EngineFailed(
                f"The engine failed on row {row}: {refused}",
                "Start the same command again: it goes on after the last row that was written.",
            ) from refused
        logger.warning("row %d has no answer: %s", row, refused)
        return line | {"prediction": None, "error": str(refused)}
    choice = answer["choices"][0]
    told = {"prediction": choice["message"]["content"], "finish_reason": choice["finish_reason"]}
    return line | told | {"completion_tokens": answer["usage"]["completion_tokens"]}


def _prompt(number: int, row: dict[str, Any], config: GenerateConfig, path: Path) -> Prompt:
    try:
        messages, reference = _split(row)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetInvalid(
            f"Row {number} of {path} holds nothing to answer: {error}",
            "Give it `prompt`, `messages`, `question` or another format of a dataset.",
        ) from error
    if config.system_prompt is not None:
        others = [message for message in messages if message["role"] != "system"]
        messages = [{"role": "system", "content": config.system_prompt}, *others]
    return number, messages, reference


def _split(row: dict[str, Any]) -> tuple[Messages, str | None]:
    """What is asked, and the answer that the row holds to it."""
    row_format = detect_format(row)
    if row_format is RowFormat.messages and row["messages"][-1].get("role") != "assistant":
        return as_messages(row, row_format), None
    if row_format is not None:
        prompt, completion = prompt_completions(row, row_format)[-1]
        return prompt, "".join(message["content"] for message in completion)
    for field in ("question", "instruction"):
        if isinstance(row.get(field), str):
            return [{"role": "user", "content": row[field]}], None
    return prompt_of(row), None
