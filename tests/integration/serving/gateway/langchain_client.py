"""Use LangChain against an address and print as JSON what it gave; runs in an environment of its own.

python tests/integration/serving/gateway/langchain_client.py http://127.0.0.1:8000/v1
"""

import asyncio
import json
import sys
from typing import Any

import openai
from langchain_core.exceptions import LangChainException
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}


def main(url: str) -> None:
    base = model(url, "base")
    answer = base.invoke("hello")
    chunks = list(base.stream("hello", stream_usage=True))
    prompt = ChatPromptTemplate.from_messages([("system", "say alpha"), ("human", "{text}")])
    hot = base.bind(temperature=3, seed=7, max_tokens=20)
    scored = base.bind(logprobs=True, top_logprobs=2).invoke("hello")
    told = {
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
        "astream": asyncio.run(streamed(base)),
        "batch": [said.content for said in base.batch(["hello", "say beta"])],
        "chain": (prompt | model(url, "alpha") | StrOutputParser()).invoke({"text": "hello"}),
        "stopped": base.bind(stop=["넷"]).invoke("hello").content,
        "seeded": [hot.invoke("hello").content for _ in range(2)],
        "logprobs": scored.response_metadata["logprobs"]["content"],
        "unknown_model": refused(model(url, "nobody")),
        "tools": refused(base.bind_tools([TOOL])),
        "engine_gone": refused(model(url, "gone")),
    }
    print(json.dumps(told, ensure_ascii=False))


def model(url: str, name: str) -> ChatOpenAI:
    return ChatOpenAI(base_url=url, api_key="none", model=name, temperature=0, max_retries=0, timeout=60)


async def streamed(base: ChatOpenAI) -> list[Any]:
    return [chunk.content async for chunk in base.astream("hello")]


def refused(asked: Any) -> dict[str, Any]:
    """The error that a call ends with, and which of OpenAI's and LangChain's own it is."""
    try:
        asked.invoke("hello")
    except (openai.APIStatusError, LangChainException) as error:
        own = ("openai", "langchain_core")
        kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__.split(".")[0] in own]
        return {"kinds": kinds, "message": str(error)}
    raise AssertionError("it was not refused")


if __name__ == "__main__":
    main(sys.argv[1])
