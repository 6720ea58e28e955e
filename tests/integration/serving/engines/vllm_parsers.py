"""Counts how often vLLM's parsers read the expected arguments; run by the Python of vLLM's environment.

python tests/integration/serving/engines/vllm_parsers.py MODEL ROWS
"""

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from vllm.entrypoints.openai.chat_completion.protocol import (  # type: ignore[import-not-found]
    ChatCompletionRequest,
)
from vllm.tool_parsers import ToolParserManager  # type: ignore[import-not-found]

MARKERS = [
    "[TOOL_CALLS]",
    "[ARGS]",
    "<|python_tag|>",
    "<|tool_call>",
    "<tool_call|>",
    '<|"|>',
    "<|tool_call|>",
]
MARKERS += ["<tool_call>", "</tool_call>", "<think>", "</think>", "<|channel>", "<channel|>"]
MARKERS += ["<seed:think>", "</seed:think>", "<seed:tool_call>", "</seed:tool_call>"]
MARKERS += ["<|tool_call_start|>", "<|tool_call_end|>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"]
MARKERS += ["<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"]


def main(model: str, path: str) -> None:
    given = json.loads(Path(path).read_text())
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": MARKERS})
    tools = [{"type": "function", "function": {"name": "search", "parameters": given["schema"]}}]
    messages = [{"role": "user", "content": "x"}]
    request = ChatCompletionRequest(model="m", messages=messages, tools=tools, tool_choice="auto")
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in given["rows"]:
        parser = ToolParserManager.get_tool_parser(row["family"])(tokenizer, request.tools)
        calls: Any = parser.extract_tool_calls(row["text"], request).tool_calls
        equal = len(calls) == 1 and json.loads(calls[0].function.arguments) == row["arguments"]
        counts[row["family"]]["equal" if equal else "different"] += 1
    print(json.dumps(counts))


if __name__ == "__main__":
    main(*sys.argv[1:])
