"""LlamaIndex: `OpenAILike` and a function agent."""

import asyncio
from typing import Any, Literal

from cases import ANSWER, API_KEY, BASE_URL, GREET, GREETING, MODEL, PAINT, PAINTED, Coat, expect, run
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

model = OpenAILike(
    api_base=BASE_URL,
    api_key=API_KEY,
    model=MODEL,
    temperature=0,
    context_window=2048,
    max_tokens=256,
    is_chat_model=True,
    is_function_calling_model=True,
    should_use_structured_outputs=True,
)


def paint(color: Literal["red", "green"]) -> str:
    """Paint the wall."""
    return PAINTED


TOOL = FunctionTool.from_defaults(paint)


def chat() -> None:
    expect(model.chat([ChatMessage(role="user", content=GREET)]).message.content, GREETING)


def stream() -> None:
    deltas = [
        part.delta for part in model.stream_chat([ChatMessage(role="user", content=GREET)]) if part.delta
    ]
    expect("".join(deltas), GREETING)
    assert len(deltas) > 3, deltas


def tools() -> None:
    async def ask() -> Any:
        return await FunctionAgent(tools=[TOOL], llm=model).run(PAINT)

    result = asyncio.run(ask())
    expect([call.tool_kwargs for call in result.tool_calls], [{"color": "red"}])
    expect(result.response.content, ANSWER)


def required() -> None:
    messages = [ChatMessage(role="user", content=PAINT)]
    response = model.chat_with_tools([TOOL], chat_history=messages, tool_required=True)
    (call,) = model.get_tool_calls_from_response(response)
    expect((call.tool_name, call.tool_kwargs), ("paint", {"color": "red"}))
    result = ChatMessage(role="tool", content=PAINTED, additional_kwargs={"tool_call_id": call.tool_id})
    last = model.chat_with_tools([TOOL], chat_history=[*messages, response.message, result])
    expect(last.message.content, ANSWER)


def structured() -> None:
    response = model.as_structured_llm(Coat).chat([ChatMessage(role="user", content=GREET)])
    assert isinstance(response.raw, Coat)


run(chat, stream, tools, required, structured)
