"""Conversion of a request's messages or text to token ids.

All of it runs in the threads of the `PromptQueue`, except `refuse_long_prompts`, the cheap check before it.
"""

import json
import re
from contextlib import suppress
from typing import Any

from serving.engines.decoding.served import ServedModel
from serving.engines.decoding.token_bounds import exceeds_tokens
from serving.engines.openai_server.prompt_queue import PromptWorker
from serving.engines.openai_server.schemas import ChatMessage, TemplateOptions
from serving.http.errors import ApiError, ContextLengthExceeded, InvalidRequest
from trainers.data.conversation import with_parsed_arguments
from trainers.rendering.omissions.search import fold_space
from trainers.rendering.template_renderer import Chat, ChatTemplateError

RESERVED_VARIABLES = {
    "chat_template",
    "tokenize",
    "messages",
    "conversation",
    "return_tensors",
    "tools",
    "documents",
}


class ChatNotRendered(ApiError):
    """The model's chat template exceeds its limits with this chat, or cannot be used at all."""

    def __init__(self, model: str, error: ChatTemplateError, param: str) -> None:
        super().__init__(f"The model {model!r} cannot render this chat. {error.message}", param)
        self.code = error.code


def chat_token_ids(
    worker: PromptWorker,
    served: ServedModel,
    max_tokens: int,
    messages: list[ChatMessage],
    options: TemplateOptions,
    param: str = "messages",
    tools: list[dict[str, Any]] | None = None,
) -> list[int]:
    """Return the token ids of a chat, rendered with the template that the model was trained with.

    Raises:
        ContextLengthExceeded: The rendered chat has more than `max_tokens` tokens.
        ChatNotRendered: The template exceeds a limit or cannot be used.
        InvalidRequest: The model has no template, or its template rejects the messages or omits tools.
    """
    text = render_chat(worker, served, messages, options, param, tools)
    return encode(worker, served, max_tokens, text, add_special_tokens=False, param=param)


def render_chat(
    worker: PromptWorker,
    served: ServedModel,
    messages: list[ChatMessage],
    options: TemplateOptions,
    param: str,
    tools: list[dict[str, Any]] | None = None,
) -> str:
    """Return the text of a chat; raises ChatNotRendered or InvalidRequest."""
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
    try:
        template: str = tokenizer.get_chat_template(tools=tools)
        shown = [
            replace_developer_role(_parse_arguments(message.for_template(), param), template)
            for message in messages
        ]
        chat = Chat(shown, tools, *prompt_end_options(options))
        rendered = worker.renderer.render(template, chat, {**tokenizer.special_tokens_map, **variables})
    except ChatTemplateError as error:
        raise ChatNotRendered(served.name, error, param) from error
    except ValueError as error:
        raise InvalidRequest(
            f"The model {served.name!r} has no default chat template: {error}", param
        ) from error
    if rendered.rejected is not None:
        raise InvalidRequest(f"The chat template rejects these messages: {rendered.rejected}", param)
    check_tools_are_rendered(served.name, rendered.text, shown, tools or [], param)
    return rendered.text


def check_tools_are_rendered(
    model: str, text: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]], param: str
) -> None:
    """Raise InvalidRequest if the template does not render tools, calls or results."""
    remedy = "Use a model that was trained to call tools, with the chat template for that."
    for tool in tools:
        if tool["function"]["name"] not in text:
            raise InvalidRequest(
                f"The chat template of the model {model!r} does not render tools. {remedy}", "tools"
            )
    for message in messages:
        called = [call["function"]["name"] for call in message.get("tool_calls") or ()]
        if any(str(name) not in text for name in called):
            raise InvalidRequest(
                f"The chat template of the model {model!r} does not render calls of tools. {remedy}", param
            )
        if message["role"] == "tool" and not _is_rendered(message["content"], text):
            raise InvalidRequest(
                f"The chat template of the model {model!r} does not render results of tools. {remedy}", param
            )


def _is_rendered(content: str, text: str) -> bool:
    """Return whether a text contains a tool's result, as it is or in another form of JSON."""
    forms = [content, json.dumps(content)[1:-1], json.dumps(content, ensure_ascii=False)[1:-1]]
    with suppress(ValueError, RecursionError):
        value = json.loads(content)
        forms += [json.dumps(value), json.dumps(value, ensure_ascii=False)]
    folded = fold_space(text)
    return any(fold_space(form) in folded for form in forms)


def _parse_arguments(message: dict[str, Any], param: str) -> dict[str, Any]:
    """Return a message whose tool arguments are objects, as in training; raises InvalidRequest."""
    try:
        parsed = with_parsed_arguments(message)
        if not all(isinstance(call["function"].get("name"), str) for call in parsed.get("tool_calls") or ()):
            raise ValueError("Every `function` needs a `name`.")
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidRequest(f"'tool_calls' of a message is not valid: {error}", param) from error
    return parsed


def replace_developer_role(message: dict[str, Any], template: str) -> dict[str, Any]:
    """Change the role `developer` to `system` if the template does not mention it.

    OpenAI renamed the role, but most templates do not know the new name, and some drop the message silently.
    """
    unknown = message["role"] == "developer" and not re.search(r"""(["'])developer\1""", template)
    return message | {"role": "system"} if unknown else message


def prompt_end_options(options: TemplateOptions) -> tuple[bool, bool]:
    """Return whether the prompt opens a new message, the default, and whether it continues the last one."""
    continues = bool(options.continue_final_message)
    opens = not continues if options.add_generation_prompt is None else options.add_generation_prompt
    if continues and opens:
        raise InvalidRequest(
            "'continue_final_message' and 'add_generation_prompt' cannot both be true.",
            "continue_final_message",
        )
    return opens, continues


def refuse_long_prompts(
    served: ServedModel, max_tokens: int, prompts: list[str | list[int]], param: str = "prompt"
) -> None:
    """Raise ContextLengthExceeded for a prompt that certainly has more than `max_tokens` tokens."""
    for prompt in prompts:
        if isinstance(prompt, str):
            n_tokens = served.coverage.min_tokens(prompt) if served.coverage else 0
            counted = f"at least {n_tokens}"
        else:
            n_tokens = len(prompt)
            counted = str(n_tokens)
        if n_tokens > max_tokens:
            raise prompt_too_long(max_tokens, counted, param)


def encode_prompts(
    worker: PromptWorker,
    served: ServedModel,
    max_tokens: int,
    prompts: list[str | list[int]],
    add_special_tokens: bool,
    vocabulary_size: int,
) -> list[list[int]]:
    """Return the token ids of each prompt.

    Raises:
        ContextLengthExceeded: A prompt has more than `max_tokens` tokens.
        InvalidRequest: A prompt is empty, or has ids that the model does not have.
    """
    return [
        encode(worker, served, max_tokens, prompt, add_special_tokens, param="prompt")
        if isinstance(prompt, str)
        else check_token_ids(prompt, vocabulary_size, "prompt")
        for prompt in prompts
    ]


def encode(
    worker: PromptWorker,
    served: ServedModel,
    max_tokens: int,
    text: str,
    add_special_tokens: bool,
    param: str,
) -> list[int]:
    """Return the token ids of a text.

    Raises:
        ContextLengthExceeded: The text certainly has more than `max_tokens` tokens.
        InvalidRequest: The text has no tokens.
    """
    refuse_long_prompts(served, max_tokens, [text], param)
    if exceeds_tokens(served.tokenizer, text, max_tokens, worker.is_cancelled):
        raise prompt_too_long(max_tokens, f"more than {max_tokens}", param)
    ids: list[int] = served.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
    if not ids:
        raise InvalidRequest(f"{param!r} is empty; this model needs at least one token.", param)
    return ids


def prompt_too_long(max_tokens: int, n_tokens: str, param: str) -> ContextLengthExceeded:
    """Return the error for a prompt that does not fit the context."""
    # OpenAI's words: LiteLLM and others recognize an overflow by the first sentence.
    return ContextLengthExceeded(
        f"This model's maximum context length is {max_tokens} tokens. However, the prompt has {n_tokens} "
        "tokens. Shorten the prompt.",
        param,
    )


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
