"""Call an address with LangChain and print the results as JSON; runs in an environment of its own.

python tests/integration/serving/gateway/langchain_client.py http://127.0.0.1:8000/v1
"""

import asyncio
import json
import sys
from typing import Any, Literal

import openai
from langchain_core.exceptions import LangChainException
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class paint(BaseModel):  # noqa: N801
    """Paint something."""

    color: Literal["red", "green"]


def main(url: str) -> None:
    base = model(url, "base")
    answer = base.invoke("hello")
    chunks = list(base.stream("hello", stream_usage=True))
    prompt = ChatPromptTemplate.from_messages([("system", "say alpha"), ("human", "{text}")])
    random = base.bind(temperature=3, seed=7, max_tokens=20)
    scored = base.bind(logprobs=True, top_logprobs=2).invoke("hello")
    results = {
        "invoke": {
            "content": answer.content,
            "finish_reason": answer.response_metadata["finish_reason"],
            "usage": answer.usage_metadata,
        },
        "stream": {
            "contents": [chunk.content for chunk in chunks],
            "usage": [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata],
            "finish_reasons": [
                reason for chunk in chunks if (reason := chunk.response_metadata.get("finish_reason"))
            ],
        },
        "astream": asyncio.run(stream_async(base)),
        "batch": [message.content for message in base.batch(["hello", "say beta"])],
        "chain": (prompt | model(url, "alpha") | StrOutputParser()).invoke({"text": "hello"}),
        "stopped": base.bind(stop=["넷"]).invoke("hello").content,
        "seeded": [random.invoke("hello").content for _ in range(2)],
        "logprobs": scored.response_metadata["logprobs"]["content"],
        "unknown_model": error_of(model(url, "nobody")),
        "tool_calls": base.bind_tools([paint]).invoke("paint it red").tool_calls,
        "structured": [
            base.with_structured_output(paint, method=method).invoke("hello").color
            for method in ("function_calling", "json_schema")
        ],
        "engine_gone": error_of(model(url, "gone")),
    }
    print(json.dumps(results, ensure_ascii=False))


def model(url: str, name: str) -> ChatOpenAI:
    return ChatOpenAI(base_url=url, api_key="none", model=name, temperature=0, max_retries=0, timeout=60)


async def stream_async(base: ChatOpenAI) -> list[Any]:
    return [chunk.content async for chunk in base.astream("hello")]


def error_of(model: Any) -> dict[str, Any]:
    """Return the error of a call, and its classes in OpenAI's and LangChain's packages."""
    try:
        model.invoke("hello")
    except (openai.APIStatusError, LangChainException) as error:
        own = ("openai", "langchain_core")
        kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__.split(".")[0] in own]
        return {"kinds": kinds, "message": str(error)}
    raise AssertionError("it was not refused")


if __name__ == "__main__":
    main(sys.argv[1])
