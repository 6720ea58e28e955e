"""LiteLLM's SDK, with the providers `openai` and `hosted_vllm`."""

import json
from typing import Any

import litellm
from cases import (
    ANSWER,
    API_KEY,
    BASE_URL,
    GREET,
    GREETING,
    MODEL,
    PAINT,
    PAINT_TOOL,
    PAINTED,
    Coat,
    expect,
    run,
)

PROVIDERS = ("openai", "hosted_vllm")


def ask(provider: str, messages: list[Any], **options: Any) -> Any:
    return litellm.completion(
        f"{provider}/{MODEL}", messages, api_base=BASE_URL, api_key=API_KEY, temperature=0, **options
    )


def chat() -> None:
    for provider in PROVIDERS:
        response = ask(provider, [{"role": "user", "content": GREET}])
        expect(response.choices[0].message.content, GREETING)


def stream() -> None:
    for provider in PROVIDERS:
        chunks = ask(provider, [{"role": "user", "content": GREET}], stream=True)
        texts = [text for chunk in chunks if (text := chunk.choices[0].delta.content)]
        expect("".join(texts), GREETING)
        assert len(texts) > 3, texts


def tools() -> None:
    for provider in PROVIDERS:
        call_and_continue(provider)


def required() -> None:
    for provider in PROVIDERS:
        call_and_continue(provider, tool_choice="required", parallel_tool_calls=False)


def call_and_continue(provider: str, **choice: Any) -> None:
    messages: list[Any] = [{"role": "user", "content": PAINT}]
    message = ask(provider, messages, tools=[PAINT_TOOL], **choice).choices[0].message
    (call,) = message.tool_calls
    expect((call.function.name, json.loads(call.function.arguments)), ("paint", {"color": "red"}))
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": PAINTED}]
    expect(ask(provider, messages, tools=[PAINT_TOOL]).choices[0].message.content, ANSWER)


def structured() -> None:
    for provider in PROVIDERS:
        response = ask(provider, [{"role": "user", "content": GREET}], response_format=Coat)
        Coat.model_validate_json(response.choices[0].message.content)


run(chat, stream, tools, required, structured)
