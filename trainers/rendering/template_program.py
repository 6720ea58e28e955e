"""A program that renders chat templates, and templates of rows, within a limit of time and memory.

A template is a program that comes with a model, so a hang or an explosion of memory must cost one child
process and nothing else. The kernel enforces both limits: a single operation of a template can build a text
of gigabytes, during which no check of Python's runs.

It imports only the standard library and jinja2, and starts in about 60 ms. Requests and responses are JSON,
each preceded by its length in 4 bytes, on standard input and output. `TemplateRenderer` is its only caller.

    python -I template_program.py MEMORY_BYTES CPU_SECONDS MAX_CHARACTERS
"""

import ast
import json
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
EXIT_OUT_OF_MEMORY = 3
MAX_REASON_CHARACTERS = 1000


class GenerationBlocks(jinja2.ext.Extension):
    """The block `generation`, which marks what the assistant wrote; it renders its contents."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        """Parse the block to its end."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Any) -> str:
        return str(caller())


class CallableDict:
    """The global `dict`, without the attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """Return a dict with these keys."""
        return dict.fromkeys(*args)


class PublicNamespace(jinja2.utils.Namespace):
    """The global `namespace`, which refuses names with a leading underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # A template may name an attribute `self`.
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def main(arguments: list[str]) -> None:
    """Serve requests until standard input is closed."""
    memory_bytes, cpu_seconds, max_characters = int(arguments[0]), float(arguments[1]), int(arguments[2])
    limit_memory(memory_bytes)
    while (request := receive()) is not None:
        try:
            # The kernel kills the process when the time has passed, also inside one long operation.
            signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
            response = respond(request, max_characters)
            signal.setitimer(signal.ITIMER_PROF, 0)
            send(response)
        except MemoryError:
            # What is left of the memory is unknown.
            os._exit(EXIT_OUT_OF_MEMORY)


def limit_memory(memory_bytes: int) -> None:
    """Limit the process to what it uses now and `memory_bytes` more; only Linux enforces this."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        limit_bytes = int(statm.read_text().split()[0]) * resource.getpagesize() + memory_bytes
        _, inherited = resource.getrlimit(resource.RLIMIT_AS)
        if inherited == resource.RLIM_INFINITY or limit_bytes < inherited:
            resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))


def receive() -> dict[str, Any] | None:
    """Return the next request, or None at the end."""
    size = os.read(0, 4)
    if len(size) < 4:
        return None
    left = int.from_bytes(size, "big")
    pieces = []
    while left:
        pieces.append(os.read(0, left))
        if not pieces[-1]:
            return None
        left -= len(pieces[-1])
    request: dict[str, Any] = json.loads(b"".join(pieces).decode("utf-8", "surrogatepass"))
    return request


def send(response: dict[str, Any]) -> None:
    """Write a response."""
    body = json.dumps(response, ensure_ascii=False).encode("utf-8", "surrogatepass")
    left = memoryview(len(body).to_bytes(4, "big") + body)
    while left:
        left = left[os.write(1, left) :]


def respond(request: dict[str, Any], max_characters: int) -> dict[str, Any]:
    """Return `results`, one for each chat or row, or `error` for a template that cannot be compiled.

    A result has the chat's `text`, or `rejected` or `unsafe` with the reason. That of a chat with
    `prompt_messages` also has `prompt`, the text of so many messages with the generation prompt, or its
    length in `prompt_characters` if the chat's text begins with it. That of a row has the `text`, or with
    `as_list` the `items` of the list that the text is.
    """
    try:
        template = (compile_row_template if "rows" in request else compile_template)(request["template"])
    except (jinja2.TemplateSyntaxError, RecursionError) as error:
        line = f"line {error.lineno}: " if isinstance(error, jinja2.TemplateSyntaxError) else ""
        return {"error": f"{line}{error}"}
    if "rows" in request:
        as_list = request["as_list"]
        return {"results": [_render_row(template, row, as_list, max_characters) for row in request["rows"]]}
    return {"results": [_render_chat(template, request, chat, max_characters) for chat in request["chats"]]}


@lru_cache(maxsize=64)
def compile_template(source: str) -> Any:
    """Compile a template in the environment that transformers gives to chat templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlocks, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=lambda format: datetime.now().strftime(format),
        dict=CallableDict(),
        namespace=PublicNamespace,
    )
    return environment.from_string(source)


@lru_cache(maxsize=64)
def compile_row_template(source: str) -> Any:
    """Compile a template of a row, with the settings of lm-eval's templates; an absent field is an error."""
    environment = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["regex_replace"] = _regex_replace
    return environment.from_string(source)


def _render_row(template: Any, row: dict[str, Any], as_list: bool, max_characters: int) -> dict[str, Any]:
    def render() -> dict[str, Any]:
        text = template.render(**row)
        if len(text) > max_characters:
            raise MemoryError
        return {"items": [str(item) for item in ast.literal_eval(text)]} if as_list else {"text": text}

    return _guard(render)


def _render_chat(
    template: Any, request: dict[str, Any], chat: dict[str, Any], max_characters: int
) -> dict[str, Any]:
    messages = [_alias_reasoning(message) for message in chat["messages"]]
    continues = chat.get("continue_final_message", False)
    n_prompt = chat.get("prompt_messages")

    def render(messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        return try_argument_forms(
            lambda messages: template.render(
                messages=messages,
                tools=chat.get("tools"),
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **request["variables"],
            ),
            messages,
        )

    def render_all() -> dict[str, Any]:
        prompt = None if n_prompt is None else render(messages[:n_prompt], True)
        last = messages[-1]
        if continues:
            messages[-1] = last | {"content": last["content"] + CONTINUE_TAG}
        text = render(messages, chat.get("add_generation_prompt", False))
        if continues:
            text = _cut_at_tag(text, last["content"])
        if max(len(text), len(prompt or "")) > max_characters:
            raise MemoryError
        if prompt is None:
            return {"text": text}
        if text.startswith(prompt):
            return {"text": text, "prompt_characters": len(prompt)}
        return {"text": text, "prompt": prompt}

    return _guard(render_all)


def _guard(render: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what is rendered, or why the template is unsafe or rejects its input."""
    try:
        return render()
    except jinja2.exceptions.SecurityError as error:
        return {"unsafe": str(error)}
    except MemoryError:
        raise
    except Exception as error:  # An untrusted template may raise anything.
        known = isinstance(error, jinja2.TemplateError)
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        return {"rejected": reason[:MAX_REASON_CHARACTERS]}


def try_argument_forms(render: Callable[[list[dict[str, Any]]], str], messages: list[dict[str, Any]]) -> str:
    """Render messages with tool arguments as objects, or as JSON text if the template needs that.

    A template that concatenates them to a text fails with objects; one that prints them writes Python's form
    of an object, such as `{'city': 'Paris'}`.
    """
    arguments = [call["function"]["arguments"] for call in _calls(messages)]
    if not arguments:
        return render(messages)
    try:
        text = render(messages)
    except (jinja2.exceptions.SecurityError, MemoryError):
        raise
    except Exception as error:  # An untrusted template may raise anything.
        try:
            return render(_with_text_arguments(messages))
        except Exception:
            # Neither form is right, so the cause is another.
            raise error from None
    printed = [value for value in arguments if value and str(value) in text and _to_json(value) not in text]
    return render(_with_text_arguments(messages)) if printed else text


def _calls(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the tool calls whose arguments are objects."""
    return [
        call
        for message in messages
        if isinstance(message.get("tool_calls"), list)
        for call in message["tool_calls"]
        if isinstance(call, dict)
        and isinstance(call.get("function"), dict)
        and isinstance(call["function"].get("arguments"), dict)
    ]


def _with_text_arguments(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    changed = []
    for message in messages:
        calls = [
            {**call, "function": {**call["function"], "arguments": _to_json(call["function"]["arguments"])}}
            if call in _calls([message])
            else call
            for call in message.get("tool_calls") or ()
        ]
        changed.append({**message, "tool_calls": calls} if calls else message)
    return changed


def _alias_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Give a message's reasoning the names under which templates look for it."""
    reasoning = next((message[name] for name in REASONING_FIELDS if message.get(name) is not None), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _cut_at_tag(text: str, content: str) -> str:
    """Return the text up to the end of the final message's content."""
    tag = CONTINUE_TAG.strip()
    if content.strip() not in text or tag not in text:
        raise ValueError("continue_final_message is set, but the template changes the final message.")
    end = text.rindex(tag)
    kept_space = text[end : end + len(CONTINUE_TAG)] == CONTINUE_TAG
    return text[:end] if kept_space else text[:end].rstrip()


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON; jinja's own filter would escape it for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _regex_replace(text: str, pattern: str, replacement: str, count: int = 0) -> str:
    """Return the text with matches replaced, as the filter of lm-eval does."""
    return re.sub(pattern, replacement, text, count=count)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace may not have the attribute {name!r}")


if __name__ == "__main__":
    main(sys.argv[1:])
