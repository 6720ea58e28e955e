"""Pydantic AI: agents on the chat API."""

import asyncio
from typing import Any, Literal

from cases import ANSWER, API_KEY, BASE_URL, GREET, GREETING, MODEL, PAINT, PAINTED, Coat, expect, run
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=BASE_URL, api_key=API_KEY))
SETTINGS: Any = {"temperature": 0}


def paint(color: Literal["red", "green"]) -> str:
    """Paint the wall."""
    return PAINTED


def chat() -> None:
    expect(Agent(model, model_settings=SETTINGS).run_sync(GREET).output, GREETING)


def stream() -> None:
    async def read() -> list[str]:
        async with Agent(model, model_settings=SETTINGS).run_stream(GREET) as result:
            return [text async for text in result.stream_text(delta=True, debounce_by=None)]

    texts = asyncio.run(read())
    expect("".join(texts), GREETING)
    assert len(texts) > 3, texts


def tools() -> None:
    call_and_continue({})


def required() -> None:
    # After the result the model may choose again: a call that is always required never ends.
    call_and_continue({"parallel_tool_calls": False})
    # An output type requires the call of a tool for it.
    output = Agent(model, model_settings=SETTINGS, output_type=Coat).run_sync(GREET).output
    assert isinstance(output, Coat)


def call_and_continue(settings: dict[str, Any]) -> None:
    result = Agent(model, model_settings={**SETTINGS, **settings}, tools=[paint]).run_sync(PAINT)
    parts = [part for message in result.all_messages() for part in message.parts]
    calls = [part.args_as_dict() for part in parts if isinstance(part, ToolCallPart)]
    expect((calls, result.output), ([{"color": "red"}], ANSWER))


def structured() -> None:
    output = Agent(model, model_settings=SETTINGS, output_type=NativeOutput(Coat)).run_sync(GREET).output
    assert isinstance(output, Coat)


run(chat, stream, tools, required, structured)
