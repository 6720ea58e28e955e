"""Completions of the rows of a file by a running engine: concurrent, and resumable."""

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2

from trainers.configs.stages.generate import GenerateConfig
from trainers.rendering.render import PromptCompletion, read_prompts
from trainers.runtime import run_dir as files
from trainers.runtime.endpoints import METER, Endpoint
from trainers.runtime.errors import DatasetInvalid, EngineFailed

# A long completion may wait behind many others.
REQUEST_TIMEOUT_SECONDS = 3600.0
# A request that the engine rejects, such as one that is too long, fails its row and not the others.
ROW_ERROR_STATUSES = {400, 413, 422}
# An endpoint that limits the rate of requests, or a proxy whose upstream starts again.
BUSY_STATUSES = {429, 502, 503, 504}
BUSY_RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
MAX_ERROR_CHARACTERS = 1000
# In the message with which an engine, ours or vLLM, rejects a chat with a model that has no template.
TEMPLATE_MISSING = "chat template"

logger = logging.getLogger("trainers")


@dataclass(frozen=True)
class Sampling:
    """How completions are decoded; temperature 0 is greedy."""

    max_new_tokens: int
    temperature: float
    top_p: float
    tools: Sequence[dict[str, Any]] | None = None
    """Functions that a prompt offers without tools of its own."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of each request."""


@dataclass(frozen=True)
class SampleRequest:
    """A prompt, the sample of it that is requested, and the seed of that sample."""

    prompt: PromptCompletion
    seed: int
    sample: int = 0


Completion = dict[str, Any]
"""`prediction` with `finish_reason` and `completion_tokens`; null with `error` for a rejected request."""


class RowRejected(Exception):
    """The engine rejected the request of one row; the message is the engine's."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        """The field of the request that the engine names."""


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
    endpoint: Endpoint,
    output: Path,
    report_count: Callable[[int], None],
) -> None:
    """Append one line to `output` for each prompt, in order, and report the count after each.

    A row that the engine rejects gets an `error` in place of a completion. A line is written once all before
    it are written: a program that is stopped loses the few rows whose requests were in progress.

    Raises:
        EngineFailed: The engine does not respond, or fails on a row.
    """
    requests = [SampleRequest(prompt, config.seed + prompt.row) for prompt in prompts]
    sampling = Sampling(config.max_new_tokens, config.temperature, config.top_p)
    completed = complete(requests, endpoint, sampling, config.concurrency, in_order=True)
    for n_written, (request, completion) in enumerate(completed, start=1):
        line = {
            "row": request.prompt.row,
            "prompt": request.prompt.prompt,
            "reference": request.prompt.completion_text or None,
        }
        files.append_line(output, line | completion)
        report_count(n_written)


def complete(
    requests: Sequence[SampleRequest],
    endpoint: Endpoint,
    sampling: Sampling,
    concurrency: int,
    *,
    in_order: bool,
    record: Callable[[SampleRequest, Completion], None] = lambda *_: None,
) -> Generator[tuple[SampleRequest, Completion]]:
    """Yield each request with its completion, in the order of the requests or as they complete.

    `record` is called in the thread of the request before that thread sends another one: a program that is
    killed loses the requests that are in progress, and nothing else.

    Raises:
        EngineFailed: The engine does not respond, or fails on a row.
    """
    pool, client = ThreadPoolExecutor(concurrency), _open_client(endpoint, concurrency)

    def send(request: SampleRequest) -> tuple[SampleRequest, Completion]:
        completion = _complete_row(client, endpoint, request, sampling)
        record(request, completion)
        return request, completion

    try:
        # As many again wait, so that no thread does while a completion is written.
        collect = _collect_in_order if in_order else _collect_completed
        yield from collect((pool.submit(send, request) for request in requests), 2 * concurrency)
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


def _open_client(endpoint: Endpoint, concurrency: int) -> httpx2.Client:
    limits = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    return httpx2.Client(
        timeout=REQUEST_TIMEOUT_SECONDS,
        limits=limits,
        headers=endpoint.headers,
        # An engine listens on loopback or a private address: proxies of the environment do not apply.
        trust_env=not endpoint.is_engine,
        # Reading the host's certificates takes 40 ms, which plain HTTP need not spend.
        verify=not endpoint.base_url.startswith("http://"),
    )


Sent = Future[tuple[SampleRequest, Completion]]


def _collect_in_order(sent: Iterator[Sent], max_waiting: int) -> Iterator[tuple[SampleRequest, Completion]]:
    waiting: deque[Sent] = deque()
    for future in sent:
        waiting.append(future)
        if len(waiting) == max_waiting:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _collect_completed(sent: Iterator[Sent], max_waiting: int) -> Iterator[tuple[SampleRequest, Completion]]:
    waiting: set[Sent] = set()
    for future in sent:
        waiting.add(future)
        if len(waiting) == max_waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (one.result() for one in done)
    while waiting:
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        yield from (one.result() for one in done)


def _complete_row(
    client: httpx2.Client, endpoint: Endpoint, request: SampleRequest, sampling: Sampling
) -> Completion:
    prompt = request.prompt
    body = {
        "model": endpoint.model,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": request.seed,
        **sampling.options,
    }
    tools = prompt.tools or sampling.tools
    chat = {"messages": prompt.prompt, **({"tools": tools} if tools else {})}
    try:
        try:
            response = _send_within_window(client, endpoint, "chat/completions", body | chat, prompt.row)
        except RowRejected as error:
            if TEMPLATE_MISSING not in str(error) or not prompt.is_text or tools or sampling.options:
                raise
            # A model without a chat template continues the text of the prompt, as it was trained.
            text = {"prompt": prompt.prompt[0]["content"]}
            response = _send_within_window(client, endpoint, "completions", body | text, prompt.row)
    except RowRejected as error:
        logger.warning("row %d has no completion: %s", prompt.row, error)
        return {"prediction": None, "error": str(error)}
    choice, usage = response["choices"][0], response.get("usage") or {}
    message = choice.get("message") or {"content": choice.get("text")}
    calls = {"tool_calls": message["tool_calls"]} if message.get("tool_calls") else {}
    return {
        # A message that only calls tools has no content.
        "prediction": message.get("content") or "",
        **calls,
        "finish_reason": choice.get("finish_reason"),
        # Some endpoints of others report none.
        "prompt_tokens": usage.get("prompt_tokens") or 0,
        "completion_tokens": usage.get("completion_tokens") or 0,
    }


def _send_within_window(
    client: httpx2.Client, endpoint: Endpoint, path: str, body: dict[str, Any], row: int
) -> Any:
    """Send a request; a completion may use what the prompt leaves of the window, up to `max_tokens`."""
    try:
        return _send(client, endpoint, path, body, row)
    except RowRejected as error:
        # Without the field, an engine stops at the end of the window. Others may bill every token.
        if error.param != "max_tokens" or not endpoint.is_engine:
            raise
    return _send(client, endpoint, path, {k: v for k, v in body.items() if k != "max_tokens"}, row)


def _send(client: httpx2.Client, endpoint: Endpoint, path: str, body: dict[str, Any], row: int) -> Any:
    url = f"{endpoint.base_url}/{path}"
    hint = "Start the same command again: it resumes after the rows that were written."
    for seconds in (*BUSY_RETRY_SECONDS, None):
        try:
            response = client.post(url, json=body)
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise EngineFailed(f"The engine did not respond to row {row}: {url}: {reason}.", hint) from error
        if response.status_code not in BUSY_STATUSES or seconds is None:
            break
        time.sleep(seconds)
    if response.is_success:
        if endpoint.is_metered:
            METER.add(response)
        return response.json()
    if response.status_code in ROW_ERROR_STATUSES:
        raise RowRejected(*_read_error(response))
    raise EngineFailed(
        f"The engine failed on row {row} with status {response.status_code}: {_read_error(response)[0]}", hint
    )


def _read_error(response: httpx2.Response) -> tuple[str, str | None]:
    """Return message and field of an error in OpenAI's format, or the text of any other."""
    try:
        content = response.json()
    except ValueError:
        return response.text[:MAX_ERROR_CHARACTERS], None
    error = content.get("error", content) if isinstance(content, dict) else content
    if not isinstance(error, dict):
        return str(error)[:MAX_ERROR_CHARACTERS], None
    param = error.get("param")
    message = str(error.get("message", error))[:MAX_ERROR_CHARACTERS]
    return message, param if isinstance(param, str) else None
