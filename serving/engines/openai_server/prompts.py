"""Conversion of a request's messages or text to token ids."""

import re
from typing import Any

from jinja2 import TemplateError

from serving.engines.decoding.served import ServedModel
from serving.engines.openai_server.schemas import ChatMessage, TemplateOptions
from serving.http.errors import InvalidRequest

RESERVED_VARIABLES = {"chat_template", "tokenize", "messages", "conversation", "return_tensors"}


def render_chat(
    served: ServedModel, messages: list[ChatMessage], options: TemplateOptions, param: str = "messages"
) -> list[int]:
    """Return the token ids of a chat, rendered with the template that the model was trained with.

    Raises:
        InvalidRequest: The model has no template, or its template rejects the messages.
    """
    tokenizer = served.tokenizer
    if tokenizer.chat_template is None:
        raise InvalidRequest(f"The model {served.name!r} has no chat template; use /v1/completions.", param)
    variables = options.chat_template_kwargs or {}
    # A template is a program, and a client's own could run for ever.
    reserved = RESERVED_VARIABLES & variables.keys()
    if reserved:
        raise InvalidRequest(
            f"'chat_template_kwargs' contains {min(reserved)!r}, which is reserved; leave it out.",
            "chat_template_kwargs",
        )
    template = str(tokenizer.chat_template)
    rendered = [replace_developer_role(message.for_template(), template) for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            rendered, tokenize=False, **prompt_end_options(options), **variables
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise InvalidRequest(f"The chat template rejects these messages: {error}", param) from error
    return encode(tokenizer, text, add_special_tokens=False, param=param)


def replace_developer_role(message: dict[str, Any], template: str) -> dict[str, Any]:
    """Change the role `developer` to `system` if the template does not mention it.

    OpenAI renamed the role, but most templates do not know the new name, and some drop the message silently.
    """
    unknown = message["role"] == "developer" and not re.search(r"""(["'])developer\1""", template)
    return message | {"role": "system"} if unknown else message


def prompt_end_options(options: TemplateOptions) -> dict[str, bool]:
    """Return whether the prompt opens a new message, which is the default, or continues the last one."""
    continues = bool(options.continue_final_message)
    opens = not continues if options.add_generation_prompt is None else options.add_generation_prompt
    if continues and opens:
        raise InvalidRequest(
            "'continue_final_message' and 'add_generation_prompt' cannot both be true.",
            "continue_final_message",
        )
    return {"add_generation_prompt": opens, "continue_final_message": continues}


def encode_prompts(
    served: ServedModel, prompts: list[str | list[int]], add_special_tokens: bool, vocabulary_size: int
) -> list[list[int]]:
    """Return the token ids of each prompt. Raises InvalidRequest for ids that the model does not have."""
    return [
        encode(served.tokenizer, prompt, add_special_tokens, param="prompt")
        if isinstance(prompt, str)
        else check_token_ids(prompt, vocabulary_size, "prompt")
        for prompt in prompts
    ]


def encode(tokenizer: Any, text: str, add_special_tokens: bool, param: str) -> list[int]:
    """Return the token ids of a text. Raises InvalidRequest if there are none."""
    ids: list[int] = tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
    if not ids:
        raise InvalidRequest(f"{param!r} is empty; this model needs at least one token.", param)
    return ids


def check_token_ids(ids: list[int], vocabulary_size: int, param: str) -> list[int]:
    """Return the ids. Raises InvalidRequest if there are none, or one that the model does not have."""
    # An id beyond the embedding would stop the whole engine with an IndexError.
    invalid = next((token for token in ids if not 0 <= token < vocabulary_size), None)
    if invalid is not None:
        raise InvalidRequest(
            f"{param!r} contains the token id {invalid}; the ids of this model are 0 to "
            f"{vocabulary_size - 1}.",
            param,
        )
    if not ids:
        raise InvalidRequest(f"{param!r} is empty; this model needs at least one token.", param)
    return ids
