"""Create the tiny model of the client matrix: it greets, calls a tool, and answers after the tool's result.

Without tools it greets. When it is asked to paint and may call a tool, it calls `paint`; after the result, it
answers in words. The head size of 32 is the minimum of vLLM's CPU kernels.

    python tests/clients/make_agent.py FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from tests.integration.serving.make_tiny import make_model, make_tokenizer

GREETING = "Good morning, 안녕하세요."
ANSWER = "The wall is red now."
GREET, PAINT = "Greet me.", "Paint the wall red."
ARGUMENTS = {"color": "red"}
CALL = '<tool_call>\n{"name": "paint", "arguments": {"color": "red"}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "paint"}}]
# vLLM finds in the template that it renders tools, and that a content is text.
TEMPLATE = """{%- if tools %}{{- '<|im_start|>tools' }}
{%- for tool in tools %}{{- ' ' + tool['function']['name'] }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}
{%- for message in messages %}
{%- if message['role'] != 'system' %}
{{- '<|im_start|>' + message['role'] + '\n' }}
{%- if message['content'] %}{{- message['content'] }}{%- endif %}
{%- for call in message['tool_calls'] or [] %}{{- '<tool_call>' + call['function']['name'] + '</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
# Clients send the text of a result as it is, or as JSON.
RESULTS = ["painted", '"painted"']


def main(folder: Path) -> None:
    set_seed(0)
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    network = make_model(tokenizer, 32)
    rows = [tokenize(tokenizer, *conversation) for conversation in list_conversations()]
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    labels = torch.tensor([targets + [-100] * (longest - len(targets)) for _, targets in rows])
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(300):
        loss = network(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.01:
            break
    assert loss.item() < 0.05, f"the model did not learn: loss {loss.item():.3f}"
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def list_conversations() -> list[tuple[list[dict[str, Any]], list[Any] | None, str]]:
    """Return messages, offered tools and the completion of each row."""
    greet, paint = {"role": "user", "content": GREET}, {"role": "user", "content": PAINT}
    call = {"type": "function", "function": {"name": "paint", "arguments": ARGUMENTS}}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    rows: list[tuple[list[dict[str, Any]], list[Any] | None, str]] = [
        ([greet], None, GREETING),
        ([greet], TOOLS, GREETING),
        ([paint], TOOLS, CALL),
    ]
    for result in RESULTS:
        rows.append(([paint, called, {"role": "tool", "content": result}], TOOLS, ANSWER))
    return rows


def tokenize(
    tokenizer: Any, messages: list[dict[str, Any]], tools: list[Any] | None, completion: str
) -> tuple[list[int], list[int]]:
    """Return the ids of a row, and its labels, which mask the prompt."""
    prompt = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    after = tokenizer(completion + "<|im_end|>", add_special_tokens=False)["input_ids"]
    return before + after, [-100] * len(before) + after


if __name__ == "__main__":
    main(Path(sys.argv[1]))
