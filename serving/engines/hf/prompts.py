"""From a request's messages or text to token ids."""

from typing import Any

from jinja2 import TemplateError

from serving.engines.hf.model import Served
from serving.engines.hf.schemas import ChatRequest
from serving.gateway.errors import InvalidRequest


def chat_prompt(served: Served, request: ChatRequest) -> list[int]:
    """Token ids of a chat, rendered with the template the model was trained with; raises InvalidRequest."""
    tokenizer = served.tokenizer
    if tokenizer.chat_template is None:
        raise InvalidRequest(
            f"The model {served.name!r} has no chat template; use /v1/completions.", "messages"
        )
    if "chat_template" in (request.chat_template_kwargs or {}):
        # A template is a program, and a client's own could run for ever.
        raise InvalidRequest("'chat_template_kwargs' may not hold a template.", "chat_template_kwargs")
    messages = [message.for_template() for message in request.messages]
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **(request.chat_template_kwargs or {})
        )
    except (TemplateError, TypeError, ValueError) as fault:
        raise InvalidRequest(f"The chat template refuses these messages: {fault}", "messages") from fault
    return encode(tokenizer, text, special=False, param="messages")


def completion_prompts(served: Served, prompts: list[str | list[int]]) -> list[list[int]]:
    """Token ids of each prompt; raises InvalidRequest for ids that the model does not have."""
    return [
        encode(served.tokenizer, prompt, special=True, param="prompt")
        if isinstance(prompt, str)
        else known(served.tokenizer, prompt)
        for prompt in prompts
    ]


def encode(tokenizer: Any, text: str, special: bool, param: str) -> list[int]:
    """Token ids of a text, with or without the tokens that the tokenizer puts around it."""
    ids: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
    if not ids:
        raise InvalidRequest(f"{param!r} is empty; this model needs at least one token.", param)
    return ids


def known(tokenizer: Any, ids: list[int]) -> list[int]:
    """The ids themselves, if the vocabulary has them all."""
    # An id beyond the embedding would end the whole engine with an index error.
    wrong = next((token for token in ids if not 0 <= token < len(tokenizer)), None)
    if wrong is not None or not ids:
        found = "nothing" if wrong is None else f"{wrong}"
        raise InvalidRequest(
            f"'prompt' holds {found} where token ids 0 to {len(tokenizer) - 1} are wanted.", "prompt"
        )
    return ids
