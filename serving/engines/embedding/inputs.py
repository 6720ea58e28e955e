"""The texts of a request as token ids; runs in the threads of the `PromptQueue`."""

from collections.abc import Sequence

from serving.engines.decoding.token_bounds import exceeds_tokens
from serving.engines.embedding.model import EmbeddingModel, TokenizedText
from serving.engines.openai_server.prompt_queue import PromptWorker
from serving.http.errors import ContextLengthExceeded, InvalidRequest

# Tokens of a request, as at OpenAI.
MAX_REQUEST_TOKENS = 300_000
PARAMETER = "input"


def tokenize_texts(
    worker: PromptWorker, model: EmbeddingModel, texts: Sequence[str | list[int]]
) -> list[TokenizedText]:
    """Return the token ids of each text.

    Raises:
        ContextLengthExceeded: A text has more tokens than the model reads.
        InvalidRequest: The request has too many tokens, or a text has none, or ids that do not exist.
    """
    tokenized: list[TokenizedText] = []
    n_tokens = 0
    for index, text in enumerate(texts):
        if worker.is_cancelled():
            break
        name = f"input[{index}]"
        if isinstance(text, str):
            tokenized.append(_tokenize(worker, model, text, name))
        else:
            tokenized.append(_check_ids(model, text, name))
        n_tokens += len(tokenized[-1].ids)
        if n_tokens > MAX_REQUEST_TOKENS:
            raise InvalidRequest(
                f"The texts of 'input' have more than {MAX_REQUEST_TOKENS:,} tokens together. Send fewer.",
                PARAMETER,
            )
    return tokenized


def _tokenize(worker: PromptWorker, model: EmbeddingModel, text: str, name: str) -> TokenizedText:
    served, max_tokens = model.served, model.max_model_len
    text = model.recipe.prompt + text
    # A long text is refused before it costs the time and memory of tokenizing it whole.
    at_least = served.coverage.min_tokens(text) if served.coverage else 0
    if at_least > max_tokens:
        raise _too_long(max_tokens, name, f"at least {at_least}")
    if exceeds_tokens(served.tokenizer, text, max_tokens, worker.is_cancelled):
        raise _too_long(max_tokens, name, f"more than {max_tokens}")
    ids: list[int] = served.tokenizer(text)["input_ids"]
    if len(ids) > max_tokens:
        raise _too_long(max_tokens, name, str(len(ids)))
    if not ids:
        raise InvalidRequest(f"{name!r} has no tokens.", PARAMETER)
    return TokenizedText(ids, model.n_prompt)


def _check_ids(model: EmbeddingModel, ids: list[int], name: str) -> TokenizedText:
    """Return the ids of a client, to which nothing is added."""
    if len(ids) > model.max_model_len:
        raise _too_long(model.max_model_len, name, str(len(ids)))
    # An id beyond the embedding would stop the whole engine with an IndexError.
    invalid = next((token for token in ids if not 0 <= token < model.vocabulary_size), None)
    if invalid is not None:
        raise InvalidRequest(
            f"{name!r} contains the token id {invalid}; the ids of this model are 0 to "
            f"{model.vocabulary_size - 1}.",
            PARAMETER,
        )
    return TokenizedText(ids)


def _too_long(max_tokens: int, name: str, n_tokens: str) -> ContextLengthExceeded:
    # OpenAI's words, by which clients recognize the error.
    return ContextLengthExceeded(
        f"This model's maximum context length is {max_tokens} tokens. However, {name!r} has {n_tokens} "
        "tokens. Shorten the text.",
        PARAMETER,
    )
