"""OpenAI's client for Python: responses."""

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
    PAINT_FUNCTION,
    PAINTED,
    Coat,
    expect,
    run,
)
from openai import OpenAI

client = OpenAI(base_url=BASE_URL, api_key=API_KEY)
OPTIONS: dict[str, Any] = {"model": MODEL, "temperature": 0}
TOOL: Any = {"type": "function", **PAINT_FUNCTION, "strict": True}


def chat() -> None:
    response = client.responses.create(**OPTIONS, input=GREET)
    expect((response.output_text, response.status), (GREETING, "completed"))


def stream() -> None:
    with client.responses.stream(**OPTIONS, input=GREET) as events:
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        final = events.get_final_response()
    expect(("".join(deltas), final.output_text), (GREETING, GREETING))
    assert len(deltas) > 3, deltas


def tools() -> None:
    call_and_continue("auto")


def required() -> None:
    call_and_continue("required")


def call_and_continue(choice: Any) -> None:
    conversation: list[Any] = [{"role": "user", "content": PAINT}]
    first = client.responses.create(
        **OPTIONS, input=conversation, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False
    )
    (call,) = [item for item in first.output if item.type == "function_call"]
    expect((call.name, json.loads(call.arguments)["color"]), ("paint", "red"))
    conversation += [*first.output]
    conversation += [{"type": "function_call_output", "call_id": call.call_id, "output": PAINTED}]
    last = client.responses.create(**OPTIONS, input=conversation, tools=[TOOL])
    expect(last.output_text, ANSWER)


def structured() -> None:
    response = client.responses.parse(**OPTIONS, input=GREET, text_format=Coat)
    assert isinstance(response.output_parsed, Coat)


run(chat, stream, tools, required, structured)
