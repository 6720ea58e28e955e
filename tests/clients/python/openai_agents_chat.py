"""OpenAI's Agents SDK, on chats and on responses: `AGENTS_API` chooses."""

import asyncio
import os
from typing import Any, Literal

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from cases import ANSWER, API_KEY, BASE_URL, GREET, GREETING, MODEL, PAINT, PAINTED, Coat, expect, run
from openai import AsyncOpenAI

set_tracing_disabled(True)
KIND: Any = OpenAIResponsesModel if os.environ["AGENTS_API"] == "responses" else OpenAIChatCompletionsModel


@function_tool
def paint(color: Literal["red", "green"]) -> str:
    """Paint the wall."""
    return PAINTED


def agent(client: AsyncOpenAI, **options: Any) -> Agent:
    settings = ModelSettings(temperature=0, **options.pop("settings", {}))
    return Agent(name="painter", model=KIND(MODEL, client), model_settings=settings, **options)


def ask(question: str, **options: Any) -> Any:
    async def request() -> Any:
        async with AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY) as client:
            return await Runner.run(agent(client, **options), question)

    return asyncio.run(request())


def chat() -> None:
    expect(ask(GREET).final_output, GREETING)


def stream() -> None:
    async def read() -> tuple[list[str], Any]:
        async with AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY) as client:
            result = Runner.run_streamed(agent(client), GREET)
            deltas = [
                event.data.delta
                async for event in result.stream_events()
                if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
            ]
            return deltas, result.final_output

    deltas, final = asyncio.run(read())
    expect(("".join(deltas), final), (GREETING, GREETING))
    assert len(deltas) > 3, deltas


def tools() -> None:
    expect_call(ask(PAINT, tools=[paint]))


def required() -> None:
    # The SDK requires the first call only.
    settings = {"tool_choice": "required", "parallel_tool_calls": False}
    expect_call(ask(PAINT, tools=[paint], settings=settings))


def expect_call(result: Any) -> None:
    kinds = [item.type for item in result.new_items]
    expect(kinds, ["tool_call_item", "tool_call_output_item", "message_output_item"])
    expect(result.final_output, ANSWER)


def structured() -> None:
    assert isinstance(ask(GREET, output_type=Coat).final_output, Coat)


run(chat, stream, tools, required, structured)
