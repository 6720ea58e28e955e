"""Goal: whatever a template leaves out of a row is found with its field, and nothing else is.

The templates are rendered by jinja2 alone. Each is a short form of what a known family does.
"""

from pathlib import Path
from typing import Any

import pytest

from trainers.data.formats import Row, detect_format
from trainers.rendering.omissions.counts import OmissionCounts
from trainers.rendering.omissions.search import find_omissions
from trainers.rendering.render import parse_preference, parse_prompt_completions
from trainers.rendering.template_program import compile_template, try_argument_forms

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIMMED = PLAIN.replace("m.content", "m.content | trim")
SYSTEM_IN_LAST_TURN = (
    "{% for m in messages if m.role != 'system' %}[{{ m.role }}] "
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }} {% endif %}"
    "{{ m.content }}\n{% endfor %}"
)
NO_SYSTEM = "{% for m in messages if m.role != 'system' %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
CALLS = (
    "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}\n"
    "{% endfor %}"
)
FIRST_CALL = CALLS.replace("in m.tool_calls or []", "in (m.tool_calls or [])[:1]")
ARGUMENTS_ALONE = CALLS.replace(
    "{{ c.function | tojson }}",
    "<function={{ c.function.name }}>{% for k, v in c.function.arguments | items %}<p={{ k }}>{{ v }}</p>"
    "{% endfor %}",
)
CUT_THOUGHT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] if m.role == 'assistant' "
    "else m.content }}\n{% endfor %}"
)
CONCATENATES = CALLS.replace("{{ c.function | tojson }}", "{{ c.function.name + c.function.arguments }}")
PRINTS = CALLS.replace("{{ c.function | tojson }}", "{{ c.function.name }} {{ c.function.arguments }}")

TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather of a city."}}


def call(city: str) -> dict[str, Any]:
    arguments = f'{{"city":"{city}","days":3}}'
    return {"id": city, "type": "function", "function": {"name": "weather", "arguments": arguments}}


def asks(answer: dict[str, Any], **fields: Any) -> Row:
    return {"messages": [{"role": "user", "content": "How is it?"}, {"role": "assistant"} | answer], **fields}


def omissions(row: Row, template: str) -> list[tuple[str, str]]:
    row_format = detect_format(row)
    assert row_format is not None
    parse = parse_preference if row_format.has_pairs else parse_prompt_completions
    turns = list(parse(1, row, Path("rows.jsonl")))
    texts = []
    for turn in turns:
        compiled, tools = compile_template(template), turn.tools

        def render(messages: list[dict[str, Any]], compiled: Any = compiled, tools: Any = tools) -> str:
            return str(compiled.render(messages=messages, tools=tools))

        texts.append(try_argument_forms(render, [*turn.prompt, *turn.completion]))
    return [(omission.kind, omission.field) for omission in find_omissions(turns, texts)]


THOUGHT = {"content": "Fine.", "reasoning_content": "It rains rarely."}
CALL_ALONE = {"content": None, "tool_calls": [call("Paris")]}
TWO_CALLS = {"content": "", "tool_calls": [call("Paris"), call("Rome")]}
SAME_CALLS = {"content": "", "tool_calls": [call("Paris"), call("Paris")]}
INSIDE = {"content": "<think>It rains rarely.</think>Fine."}
ANSWER = {"content": "Fine."}
SYSTEM = {"system": "Be brief."}


@pytest.mark.parametrize(
    ("row", "template", "expected"),
    [
        (asks(ANSWER), PLAIN, []),
        (asks(THOUGHT), PLAIN, [("reasoning", "messages[1].reasoning_content")]),
        (asks(THOUGHT), CALLS, []),
        (asks(CALL_ALONE), PLAIN, [("completion", "messages[1].tool_calls[0]")]),
        (asks(CALL_ALONE | ANSWER), PLAIN, [("tool_call", "messages[1].tool_calls[0]")]),
        (asks(CALL_ALONE), CALLS, []),
        (asks(TWO_CALLS), FIRST_CALL, [("tool_call", "messages[1].tool_calls[1]")]),
        (asks(SAME_CALLS), FIRST_CALL, [("tool_call", "messages[1].tool_calls[1]")]),
        (asks(SAME_CALLS), CALLS, []),
        (asks(TWO_CALLS), ARGUMENTS_ALONE, [("json_form", f"messages[1].tool_calls[{n}]") for n in (0, 1)]),
        (asks(INSIDE), CUT_THOUGHT, [("reasoning", "messages[1]")]),
        (asks(ANSWER, tools=[TOOL]), PLAIN, [("tools", "tools[0]")]),
        (asks(ANSWER, tools=[TOOL]), CALLS, []),
        (asks(ANSWER) | SYSTEM, NO_SYSTEM, [("text", "system")]),
        (asks(ANSWER) | SYSTEM, SYSTEM_IN_LAST_TURN, []),
        (asks({"content": "Fine. "}), TRIMMED, [("white_space", "messages[1]")]),
        (asks(ANSWER | {"refusal": "I will not."}), PLAIN, [("unread_field", "messages[1].refusal")]),
        (asks(ANSWER, context="Berlin in May"), PLAIN, [("unread_field", "context")]),
        (asks(ANSWER, context="Fine."), PLAIN, []),
        (
            asks(ANSWER, note="The weather of the city has been fine for many days."),
            PLAIN,
            [("unread_prose", "note")],
        ),
        (
            asks(ANSWER, id="7f3a", source="wikipedia", license="CC BY 4.0", score=0.5, tags=["a b"]),
            PLAIN,
            [],
        ),
        ({"prompt": "How?", "chosen": "Well.", "rejected": "No."} | SYSTEM, NO_SYSTEM, [("text", "system")]),
        ({"prompt": "How?", "completion": "Well.", "label": True}, PLAIN, []),
        ({"instruction": "How?", "input": "", "output": "Well.", "history": [["a", "b"]]}, PLAIN, []),
        (
            {"instruction": "How?", "output": "Well.", "history": "yesterday"},
            PLAIN,
            [("unread_field", "history")],
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_a_template_leaves_out_is_found(
    row: Row, template: str, expected: list[tuple[str, str]]
) -> None:
    assert omissions(row, template) == expected


def test_the_reasoning_of_earlier_turns_is_dropped_by_design() -> None:
    turns = asks(THOUGHT)["messages"]
    assert omissions({"messages": [*turns, *turns]}, CALLS) == [
        ("earlier_reasoning", "messages[1].reasoning_content")
    ]


def test_an_omission_in_the_middle_of_a_conversation_is_found_once() -> None:
    turns = asks(CALL_ALONE)["messages"]
    result = {"role": "tool", "content": "18 degrees", "tool_call_id": "Paris", "name": "weather"}
    row = {"messages": [*turns, result, {"role": "assistant", "content": "18 degrees."}]}
    kinds = [("completion", "messages[1].tool_calls[0]"), ("tool_call", "messages[1].tool_calls[0]")]
    assert omissions(row, PLAIN) == kinds
    assert omissions(row, CALLS) == []


@pytest.mark.parametrize("template", [CONCATENATES, PRINTS], ids=["concatenates", "prints"])
def test_arguments_are_text_for_a_template_that_needs_text(template: str) -> None:
    assert omissions(asks(TWO_CALLS), template) == []
    without = {"type": "function", "function": {"name": "weather", "arguments": None}}
    assert omissions(asks({"content": "", "tool_calls": [without]}), template) == []


def test_a_completion_that_a_template_drops_is_not_found_in_the_prompt() -> None:
    row = {"prompt": "Say Fine.", "completion": "Fine."}
    only_prompt = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    assert omissions(row, only_prompt) == [("completion", "completion")]


def test_one_character_answers_are_found_next_to_reasoning_and_calls() -> None:
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "c", "tool_calls": [call("c")], "reasoning_content": "b c a c"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "a", "reasoning_content": "a c"},
    ]
    kinds = [kind for kind, _ in omissions({"messages": turns}, CALLS)]
    assert kinds in ([], ["earlier_reasoning"])


def test_counts_of_parts_of_a_file_add_up() -> None:
    row = asks(CALL_ALONE)
    turns = parse_prompt_completions(1, row, Path("rows.jsonl"))
    found = find_omissions(turns, [""])
    whole, first, second = OmissionCounts(), OmissionCounts(), OmissionCounts()
    for line in range(1, 9):
        whole.add(line, found)
        (first if line < 4 else second).add(line, found)
    first.merge(second)
    assert first == whole
    assert first.fields("completion") == [("messages[].tool_calls[]", 8)]  # type: ignore[arg-type]
    assert [line for line, _ in first.places["completion"]] == [1, 2, 3, 4, 5]  # type: ignore[index]
