"""From a request's messages or text to token ids."""

import re
from typing import Any

from jinja2 import TemplateError

from serving.engines.decoding.served import ServedModel
from serving.engines.openai_server.schemas import ChatMessage, TemplateOptions
from serving.http.errors import InvalidRequest


def render_chat(
    served: ServedModel, messages: list[ChatMessage], options: TemplateOptions, param: str = "messages"
) -> list[int]:
    """Token ids of a chat, rendered with the template the model was trained with; raises InvalidRequest."""
    tokenizer = served.tokenizer
    if tokenizer.chat_template is None:
        raise InvalidRequest(f"The model {served.name!r} has no chat template; use /v1/completions.", param)
    further = options.chat_template_kwargs or {}
    reserved = {"chat_template", "tokenize", "messages", "conversation", "return_tensors"} & further.keys()
    if reserved:
        # A template is a program, and a client's own could run for ever.
        raise InvalidRequest(
            f"'chat_template_kwargs' may not hold {min(reserved)!r}.", "chat_template_kwargs"
        )
    rendered = [known_role(message.for_template(), str(tokenizer.chat_template)) for message in messages]
    try:
        text = tokenizer.apply_chat_template(rendered, tokenize=False, **ending(options), **further)
    except (TemplateError, TypeError, ValueError) as fault:
        raise InvalidRequest(f"The chat template refuses these messages: {fault}", param) from fault
    return encode(tokenizer, text, special=False, param=param)


def known_role(message: dict[str, Any], template: str) -> dict[str, Any]:
    """A developer's message as the system's where the template has no word of developers."""
    # OpenAI gave the role a second name that most templates do not know, and some drop without a word.
    developer = message["role"] == "developer" and not re.search(r"""(["'])developer\1""", template)
    return message | {"role": "system"} if developer else message


def ending(options: TemplateOptions) -> dict[str, bool]:
    """Whether the prompt opens a new answer, as it does unless told otherwise, or goes on with the last."""
    continues = bool(options.continue_final_message)
    opens = not continues if options.add_generation_prompt is None else options.add_generation_prompt
    if continues and opens:
        raise InvalidRequest(
            "'continue_final_message' and 'add_generation_prompt' cannot both be true.",
            "continue_final_message",
        )
    return {"add_generation_prompt": opens, "continue_final_message": continues}


def encode_prompts(
    served: ServedModel, prompts: list[str | list[int]], special: bool, vocabulary_size: int
) -> list[list[int]]:
    """Token ids of each prompt; raises InvalidRequest for ids that the model does not have."""
    return [
        encode(served.tokenizer, prompt, special=special, param="prompt")
        if isinstance(prompt, str)
        else check_token_ids(prompt, vocabulary_size, "prompt")
        for prompt in prompts
    ]


def encode(tokenizer: Any, text: str, special: bool, param: str) -> list[int]:
    """Token ids of a text, with or without the tokens that the tokenizer puts around it."""
    ids: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
    if not ids:
        raise InvalidRequest(f"{param!r} is empty; this model needs at least one token.", param)
    return ids


def check_token_ids(ids: list[int], vocabulary_size: int, param: str) -> list[int]:
    """The ids themselves, if the model has them all."""
    # An id beyond the embedding would end the whole engine with an index error.
    wrong = next((token for token in ids if not 0 <= token < vocabulary_size), None)
    if wrong is not None or not ids:
        found = "nothing" if wrong is None else f"{wrong}"
        raise InvalidRequest(
            f"{param!r} holds {found} where token ids 0 to {vocabulary_size - 1} are wanted.", param
        )
    return ids
