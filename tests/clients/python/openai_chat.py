"""OpenAI's client for Python: chats, with the same program for all its versions."""

import json
from typing import Any

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
from openai import OpenAI

client = OpenAI(base_url=BASE_URL, api_key=API_KEY)
OPTIONS: dict[str, Any] = {"model": MODEL, "temperature": 0}


def chat() -> None:
    completion = client.chat.completions.create(**OPTIONS, messages=[{"role": "user", "content": GREET}])
    expect(completion.choices[0].message.content, GREETING)
    expect(completion.choices[0].finish_reason, "stop")
    assert completion.usage is not None and completion.usage.completion_tokens > 1


def stream() -> None:
    chunks = list(
        client.chat.completions.create(
            **OPTIONS,
            messages=[{"role": "user", "content": GREET}],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    texts = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    expect("".join(texts), GREETING)
    assert len(texts) > 3, texts
    assert chunks[-1].usage is not None


def tools() -> None:
    call_and_continue("auto")
    with client.chat.completions.stream(
        **OPTIONS, messages=[{"role": "user", "content": PAINT}], tools=[PAINT_TOOL]
    ) as events:
        message = events.get_final_completion().choices[0].message
    assert message.tool_calls is not None
    expect(json.loads(message.tool_calls[0].function.arguments), {"color": "red"})


def required() -> None:
    call_and_continue("required")


def call_and_continue(choice: Any) -> None:
    messages: list[Any] = [{"role": "user", "content": PAINT}]
    message = (
        client.chat.completions.create(
            **OPTIONS, messages=messages, tools=[PAINT_TOOL], tool_choice=choice, parallel_tool_calls=False
        )
        .choices[0]
        .message
    )
    assert message.tool_calls, message
    (call,) = message.tool_calls
    assert call.type == "function"
    expect((call.function.name, json.loads(call.function.arguments)["color"]), ("paint", "red"))
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": PAINTED}]
    last = client.chat.completions.create(**OPTIONS, messages=messages, tools=[PAINT_TOOL])
    expect(last.choices[0].message.content, ANSWER)


def structured() -> None:
    completion = client.chat.completions.parse(
        **OPTIONS, messages=[{"role": "user", "content": GREET}], response_format=Coat
    )
    assert isinstance(completion.choices[0].message.parsed, Coat)


run(chat, stream, tools, required, structured)
