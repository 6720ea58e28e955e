"""Log-probability of each token of a reference under a model, by the engine that serves it.

The engine renders and tokenizes the conversation with and without the reference. The tokens of the reference
are those after the common beginning, as in training, and the scores are the log-probabilities of a prompt's
tokens that `POST /v1/completions` returns for `echo`: our engines hf and mlx, and vLLM, have both.
"""

import logging
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2

from trainers.evaluation.row_completions import REQUEST_TIMEOUT_SECONDS, ROW_ERROR_STATUSES, TEMPLATE_MISSING
from trainers.rendering.render import PromptCompletion, common_prefix_length
from trainers.runtime.endpoints import METER, Endpoint
from trainers.runtime.errors import ConfigInvalid, EngineFailed

MAX_ERROR_CHARACTERS = 500
_UNKNOWN_STATUSES = {404, 405, 501}

logger = logging.getLogger("trainers")


class ReferenceRejected(Exception):
    """The engine cannot score one reference; the message is the engine's."""


def score_references(
    pairs: Sequence[PromptCompletion], endpoint: Endpoint, concurrency: int
) -> Generator[tuple[int, list[float] | None]]:
    """Yield each row with the log-probabilities of its reference; None for one that the engine rejects.

    Raises:
        EngineFailed: The engine does not respond, or fails.
        ConfigInvalid: It does not score prompts.
    """
    pool = ThreadPoolExecutor(concurrency)
    limits = httpx2.Limits(max_connections=concurrency)
    # Proxies of the environment do not apply to an engine of this installation.
    client = httpx2.Client(
        timeout=REQUEST_TIMEOUT_SECONDS,
        limits=limits,
        headers=endpoint.headers,
        trust_env=not endpoint.is_engine,
    )
    try:
        scores = pool.map(lambda pair: _score(client, endpoint, pair), pairs)
        yield from zip((pair.row for pair in pairs), scores, strict=True)
    finally:
        # Those in progress take no longer than one prompt.
        pool.shutdown(cancel_futures=True)
        client.close()


def _score(client: httpx2.Client, endpoint: Endpoint, pair: PromptCompletion) -> list[float] | None:
    try:
        prompt, whole = _tokenize(client, endpoint, pair)
        start = common_prefix_length(prompt, whole)
        body = {"model": endpoint.model, "prompt": whole, "max_tokens": 0, "echo": True, "logprobs": 0}
        response = _post(client, f"{endpoint.base_url}/completions", body)
        if endpoint.is_metered:
            METER.add(response)
        scores: list[float] = response.json()["choices"][0]["logprobs"]["token_logprobs"]
    except ReferenceRejected as error:
        logger.warning("the reference of row %d is not scored: %s", pair.row, error)
        return None
    except (LookupError, TypeError) as error:
        raise _unsupported("it returned no log-probabilities") from error
    if len(scores) != len(whole) or None in scores[max(start, 1) :]:
        raise _unsupported(f"it scored {len(scores)} of {len(whole)} tokens")
    # Nothing precedes the first token, so it has no probability.
    return scores[max(start, 1) :]


def _tokenize(
    client: httpx2.Client, endpoint: Endpoint, pair: PromptCompletion
) -> tuple[list[int], list[int]]:
    """Return the tokens of the prompt, and those of the prompt with its reference."""
    tools = {"tools": pair.tools} if pair.tools else {}
    chats: list[dict[str, Any]] = [
        {"messages": pair.prompt, "add_generation_prompt": True, **tools},
        {"messages": [*pair.prompt, *pair.completion], "add_generation_prompt": False, **tools},
    ]
    url = endpoint.base_url.removesuffix("/v1") + "/tokenize"
    try:
        prompt, whole = (
            _post(client, url, {"model": endpoint.model, **chat}).json()["tokens"] for chat in chats
        )
    except ReferenceRejected as error:
        if TEMPLATE_MISSING not in str(error) or not pair.is_text:
            raise
        # A model without a chat template continues the text of the prompt. The end of text is not scored.
        text = pair.prompt[0]["content"]
        texts = (text, text + pair.completion_text)
        prompt, whole = (
            _post(client, url, {"model": endpoint.model, "prompt": one}).json()["tokens"] for one in texts
        )
    return prompt, whole


def _post(client: httpx2.Client, url: str, body: dict[str, Any]) -> httpx2.Response:
    try:
        response = client.post(url, json=body)
    except (httpx2.TransportError, httpx2.InvalidURL) as error:
        raise EngineFailed(f"The engine did not respond: {url}: {error or type(error).__name__}.") from error
    if response.is_success:
        return response
    reason = f"status {response.status_code}: {response.text[:MAX_ERROR_CHARACTERS]}"
    if response.status_code in ROW_ERROR_STATUSES:
        raise ReferenceRejected(reason)
    if response.status_code in _UNKNOWN_STATUSES:
        raise _unsupported(reason)
    raise EngineFailed(f"The engine failed to score a reference: {reason}")


def _unsupported(reason: str) -> ConfigInvalid:
    return ConfigInvalid(
        f"The engine does not score the tokens of a prompt, which perplexity needs: {reason}.",
        "Use the engine hf, mlx or vllm, or leave perplexity out.",
    )
