"""Completions of the rows of a file by a running engine: in order, concurrent, and resumable."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2

from trainers.configs.stages.generate import GenerateConfig
from trainers.rendering.render import PromptCompletion, read_prompts
from trainers.runtime import run_dir as files
from trainers.runtime.errors import DatasetInvalid, EngineFailed

# A long completion may wait behind many others.
REQUEST_TIMEOUT_SECONDS = 3600.0
# A request that the engine rejects, such as one that is too long, fails its row and not the others.
ROW_ERROR_STATUSES = {400, 413, 422}
MAX_ERROR_CHARACTERS = 1000
# In the message with which an engine, ours or vLLM, rejects a chat with a model that has no template.
TEMPLATE_MISSING = "chat template"

logger = logging.getLogger("trainers")


@dataclass(frozen=True)
class EngineEndpoint:
    """A running engine with an OpenAI-compatible API, and the name of the model in its requests."""

    url: str
    model: str


class RowRejected(Exception):
    """The engine rejected the request of one row; the message is the engine's."""


def load_prompts(config: GenerateConfig) -> list[PromptCompletion]:
    """Read the prompts of all rows.

    Raises:
        DatasetFileNotFound: The dataset's file does not exist.
        DatasetInvalid: A row has no prompt, or there are no rows.
    """
    prompts = [
        _with_system_prompt(config.system_prompt, prompt)
        for prompt in read_prompts(config.dataset, config.max_rows)
    ]
    if not prompts:
        raise DatasetInvalid(f"The dataset {config.dataset} has no rows.", "Add rows.")
    return prompts


def skip_completed(prompts: Sequence[PromptCompletion], output: Path) -> Sequence[PromptCompletion]:
    """Return the prompts that have no line in `output` yet.

    An incomplete last line, which a killed program leaves, is removed from the file.

    Raises:
        DatasetInvalid: `output` contains completions of other prompts.
    """
    if files.has_partial_last_line(output):
        content = output.read_bytes()
        output.write_bytes(content[: content.rfind(b"\n") + 1])
    lines = files.read_lines(output)
    different = [
        line for line, prompt in zip(lines, prompts, strict=False) if line["prompt"] != prompt.prompt
    ]
    if different or len(lines) > len(prompts):
        row = (different or lines[len(prompts) :])[0]["row"]
        raise DatasetInvalid(
            f"{output} contains completions of another dataset: the prompt of row {row} is different.",
            "Name another output, or remove the file to generate all completions again.",
        )
    return prompts[len(lines) :]


def complete_rows(
    config: GenerateConfig,
    prompts: Sequence[PromptCompletion],
    endpoint: EngineEndpoint,
    output: Path,
    report_count: Callable[[int], None],
) -> None:
    """Append one line to `output` for each prompt, in order, and report the count after each.

    A row that the engine rejects gets an `error` in place of a completion. A line is written once all before
    it are written: a program that is stopped loses the few rows whose requests were in progress.

    Raises:
        EngineFailed: The engine does not respond, or fails on a row.
    """
    pool, client = ThreadPoolExecutor(config.concurrency), _open_client(config.concurrency)
    try:
        lines = _complete_in_order(pool, client, config, prompts, endpoint)
        for n_written, line in enumerate(lines, start=1):
            files.append_line(output, line)
            report_count(n_written)
    except BaseException:
        # A stop must not wait for long completions: the engine cancels them when it stops. Nor may it close
        # their connections: a thread that begins to read from one that is closed waits for the time limit.
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    client.close()


def _with_system_prompt(system_prompt: str | None, prompt: PromptCompletion) -> PromptCompletion:
    if system_prompt is None:
        return prompt
    others = [message for message in prompt.prompt if message["role"] != "system"]
    return replace(prompt, prompt=[{"role": "system", "content": system_prompt}, *others])


def _open_client(concurrency: int) -> httpx2.Client:
    # An engine listens on loopback or a private address: proxies of the environment do not apply.
    limits = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    return httpx2.Client(timeout=REQUEST_TIMEOUT_SECONDS, limits=limits, trust_env=False)


def _complete_in_order(
    pool: ThreadPoolExecutor,
    client: httpx2.Client,
    config: GenerateConfig,
    prompts: Sequence[PromptCompletion],
    endpoint: EngineEndpoint,
) -> Iterator[dict[str, Any]]:
    """Yield the lines in the order of the rows. Up to twice `concurrency` rows are in progress."""
    waiting: deque[Future[dict[str, Any]]] = deque()
    for prompt in prompts:
        waiting.append(pool.submit(_complete_row, client, config, prompt, endpoint))
        if len(waiting) == 2 * config.concurrency:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _complete_row(
    client: httpx2.Client, config: GenerateConfig, prompt: PromptCompletion, endpoint: EngineEndpoint
) -> dict[str, Any]:
    line: dict[str, Any] = {
        "row": prompt.row,
        "prompt": prompt.prompt,
        "reference": prompt.completion_text or None,
    }
    body = {
        "model": endpoint.model,
        "max_tokens": config.max_new_tokens,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "seed": config.seed + prompt.row,
    }
    chat = {"messages": prompt.prompt, **({"tools": prompt.tools} if prompt.tools else {})}
    try:
        try:
            response = _send(client, f"{endpoint.url}/v1/chat/completions", body | chat, prompt.row)
        except RowRejected as error:
            if TEMPLATE_MISSING not in str(error) or not prompt.is_text:
                raise
            # A model without a chat template continues the text of the prompt, as it was trained.
            text = {"prompt": prompt.prompt[0]["content"]}
            response = _send(client, f"{endpoint.url}/v1/completions", body | text, prompt.row)
    except RowRejected as error:
        logger.warning("row %d has no completion: %s", prompt.row, error)
        return line | {"prediction": None, "error": str(error)}
    choice = response["choices"][0]
    return line | {
        "prediction": choice["message"]["content"] if "message" in choice else choice["text"],
        "finish_reason": choice["finish_reason"],
        "completion_tokens": response["usage"]["completion_tokens"],
    }


def _send(client: httpx2.Client, url: str, body: dict[str, Any], row: int) -> Any:
    hint = "Start the same command again: it resumes after the last row that was written."
    try:
        response = client.post(url, json=body)
    except (httpx2.TransportError, httpx2.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise EngineFailed(f"The engine did not respond to row {row}: {url}: {reason}.", hint) from error
    if response.is_success:
        return response.json()
    if response.status_code in ROW_ERROR_STATUSES:
        raise RowRejected(_error_message(response))
    raise EngineFailed(
        f"The engine failed on row {row} with status {response.status_code}: {_error_message(response)}", hint
    )


def _error_message(response: httpx2.Response) -> str:
    """Return the message of an error in OpenAI's format, or the text of any other."""
    try:
        content = response.json()
    except ValueError:
        return response.text[:MAX_ERROR_CHARACTERS]
    error = content.get("error", content) if isinstance(content, dict) else content
    return str(error.get("message", error) if isinstance(error, dict) else error)[:MAX_ERROR_CHARACTERS]
