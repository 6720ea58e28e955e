"""LangChain: `ChatOpenAI` and an agent."""

from typing import Any, Literal

from cases import ANSWER, API_KEY, BASE_URL, GREET, GREETING, MODEL, PAINT, PAINTED, Coat, expect, run
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

model = ChatOpenAI(base_url=BASE_URL, api_key=API_KEY, model=MODEL, temperature=0)


@tool
def paint(color: Literal["red", "green"]) -> str:
    """Paint the wall."""
    return PAINTED


def chat() -> None:
    message = model.invoke(GREET)
    expect((message.content, message.response_metadata["finish_reason"]), (GREETING, "stop"))


def stream() -> None:
    texts = [chunk.content for chunk in model.stream(GREET) if chunk.content]
    expect("".join(texts), GREETING)
    assert len(texts) > 3, texts


def tools() -> None:
    agent = create_agent(model, tools=[paint])
    messages = agent.invoke({"messages": [{"role": "user", "content": PAINT}]})["messages"]
    expect([message.type for message in messages], ["human", "ai", "tool", "ai"])
    expect((messages[1].tool_calls[0]["args"], messages[-1].content), ({"color": "red"}, ANSWER))


def required() -> None:
    bound = model.bind_tools([paint], tool_choice="required", parallel_tool_calls=False)
    messages: list[Any] = [HumanMessage(PAINT)]
    message = bound.invoke(messages)
    (call,) = message.tool_calls
    expect((call["name"], call["args"]), ("paint", {"color": "red"}))
    messages += [message, ToolMessage(PAINTED, tool_call_id=call["id"])]
    expect(model.bind_tools([paint]).invoke(messages).content, ANSWER)


def structured() -> None:
    assert isinstance(model.with_structured_output(Coat, method="json_schema").invoke(GREET), Coat)
    called = model.with_structured_output(paint.args_schema, method="function_calling").invoke(PAINT)
    expect(called.color, "red")


run(chat, stream, tools, required, structured)
