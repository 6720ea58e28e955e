import copy
import random
from typing import Any

import pytest

from trainers.data.checks import validate_row
from trainers.data.conversation import offered_tools, preference_messages, prompt_completions, to_messages
from trainers.data.faults import FaultCode
from trainers.data.formats import Message, Row, RowFormat
from trainers.data.statistics import turn_lengths

CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}


def turn(role: Any, content: Any, **more: Any) -> Message:
    return {"role": role, "content": content, **more}


def talk(*roles: str) -> list[Message]:
    return [turn(role, "text") for role in roles]


VALID: list[tuple[RowFormat, Row]] = [
    (RowFormat.llama, {"text": "<s>[INST] <<SYS>>\ns\n<</SYS>>\n\na [/INST] b </s>"}),
    (RowFormat.messages, {"messages": talk("user", "assistant")}),
    (RowFormat.messages, {"messages": talk("system", "user", "assistant", "user", "assistant")}),
    (RowFormat.messages, {"messages": talk("developer", "user", "assistant"), "id": 7}),
    (
        RowFormat.messages,
        {
            "messages": [
                turn("user", [{"type": "text", "text": "a"}]),
                turn("assistant", None, tool_calls=[CALL, CALL]),
                turn("tool", "", tool_call_id="c1"),
                turn("tool", "4", tool_call_id="c1"),
                turn("assistant", "b", weight=1, name="bot"),
            ],
            "tools": [TOOL],
        },
    ),
    (RowFormat.prompt_completion, {"prompt": "a", "completion": "b"}),
    (RowFormat.prompt_completion, {"prompt": talk("system", "user"), "completion": talk("assistant")}),
    (RowFormat.instruction, {"instruction": "a", "response": "b", "system": None}),
    (RowFormat.alpaca, {"instruction": "a", "input": "", "output": "b"}),
    (RowFormat.alpaca, {"instruction": "a", "input": None, "output": "b"}),
    (
        RowFormat.sharegpt,
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    ),
    (RowFormat.question_answer, {"question": "a", "answer": "b"}),
    (RowFormat.preference, {"prompt": "a", "chosen": "b", "rejected": "c"}),
    (
        RowFormat.preference,
        {
            "prompt": "text",
            "chosen": talk("user", "assistant"),
            "rejected": [turn("user", "text"), turn("assistant", "no")],
        },
    ),
    (
        RowFormat.preference,
        {
            "input": {"messages": talk("user"), "tools": [TOOL]},
            "preferred_output": [turn("assistant", "b")],
            "non_preferred_output": [turn("assistant", "c")],
        },
    ),
]

M, P, S, D = RowFormat.messages, RowFormat.prompt_completion, RowFormat.sharegpt, RowFormat.preference
Q, A = RowFormat.question_answer, RowFormat.alpaca
USER, ANSWER = turn("user", "a"), turn("assistant", "b")

FAULTY = [
    (M, {"messages": "a"}, "messages", "wrong_type"),
    (M, {"messages": []}, "messages", "empty_conversation"),
    (M, {"messages": talk("system")}, "messages", "empty_conversation"),
    (M, {"messages": [USER, "b"]}, "messages[1]", "wrong_type"),
    (M, {"messages": [turn("system", "a"), USER, ANSWER], "system": "b"}, "system", "system_twice"),
    (M, {"messages": [turn("human", "a"), ANSWER]}, "messages[0].role", "unknown_role"),
    (M, {"messages": [turn(["user"], "a"), ANSWER]}, "messages[0].role", "unknown_role"),
    (M, {"messages": [{"content": "a"}, ANSWER]}, "messages[0].role", "unknown_role"),
    (M, {"messages": [USER, {"role": "assistant"}]}, "messages[1].content", "missing_field"),
    (M, {"messages": [USER, turn("assistant", None)]}, "messages[1].content", "missing_field"),
    (M, {"messages": [turn("user", None), ANSWER]}, "messages[0].content", "missing_field"),
    (M, {"messages": [USER, turn("assistant", " \n")]}, "messages[1].content", "empty_text"),
    (M, {"messages": [turn("user", 5), ANSWER]}, "messages[0].content", "wrong_type"),
    (
        M,
        {"messages": [turn("user", [{"type": "text", "text": ""}]), ANSWER]},
        "messages[0].content",
        "empty_text",
    ),
    (
        M,
        {"messages": [turn("user", [{"type": "image_url"}]), ANSWER]},
        "messages[0].content",
        "unsupported_content",
    ),
    (M, {"messages": talk("user", "system", "assistant")}, "messages[1].role", "message_order"),
    (M, {"messages": talk("assistant", "user", "assistant")}, "messages", "message_order"),
    (M, {"messages": talk("user", "tool", "assistant")}, "messages[1].role", "message_order"),
    (M, {"messages": talk("user", "assistant", "tool", "assistant")}, "messages[2].role", "message_order"),
    (M, {"messages": talk("user")}, "messages", "no_assistant_turn"),
    (M, {"messages": talk("user", "assistant", "user")}, "messages", "last_turn_not_assistant"),
    (
        M,
        {"messages": [turn("user", "a", tool_calls=[CALL]), ANSWER]},
        "messages[0].tool_calls",
        "invalid_tool_call",
    ),
    (
        M,
        {"messages": [USER, turn("assistant", "", tool_calls=[{}])]},
        "messages[1].tool_calls",
        "invalid_tool_call",
    ),
    (
        M,
        {
            "messages": [
                USER,
                turn("assistant", "", tool_calls=[{"function": {"name": "f", "arguments": "{"}}]),
            ]
        },
        "messages[1].tool_calls",
        "invalid_tool_call",
    ),
    (M, {"messages": [USER, turn("assistant", "b", weight=2)]}, "messages[1].weight", "invalid_weight"),
    (M, {"messages": [turn("user", "a", weight=1), ANSWER]}, "messages[0].weight", "invalid_weight"),
    (M, {"messages": [USER, turn("assistant", "b", weight=0)]}, "messages", "nothing_to_train"),
    (M, {"messages": [USER, ANSWER], "tools": [{"name": "add"}]}, "tools", "invalid_tools"),
    (M, {"messages": [USER, ANSWER], "tools": "[{"}, "tools", "invalid_tools"),
    (M, {"question": "a", "answer": "b"}, None, "other_format"),
    (M, {"words": "a"}, None, "unknown_format"),
    (RowFormat.llama, {"text": "a"}, None, "other_format"),
    (RowFormat.text, {"words": "a"}, None, "unknown_format"),
    (RowFormat.text, {"text": 5}, "text", "wrong_type"),
    (RowFormat.text, {"text": " "}, "text", "empty_text"),
    (RowFormat.llama, {"text": "<s>[INST] a"}, "text", "invalid_marks"),
    (P, {"prompt": "a"}, "completion", "missing_field"),
    (P, {"prompt": "", "completion": "b"}, "prompt", "empty_text"),
    (P, {"prompt": "a", "completion": "  "}, "completion", "empty_text"),
    (P, {"prompt": None, "completion": "b"}, "prompt", "wrong_type"),
    (P, {"prompt": talk("user", "assistant"), "completion": "b"}, "prompt", "message_order"),
    (P, {"prompt": talk("user"), "completion": talk("user", "assistant")}, "completion", "message_order"),
    (Q, {"question": "a", "answer": 4}, "answer", "wrong_type"),
    (Q, {"question": "a"}, "answer", "missing_field"),
    (A, {"instruction": "a", "input": 3, "output": "b"}, "input", "wrong_type"),
    (A, {"instruction": "a", "output": "b", "system": 3}, "system", "wrong_type"),
    (S, {"conversations": [{"from": "bot", "value": "a"}]}, "conversations[0].from", "unknown_role"),
    (S, {"conversations": [{"from": "human", "value": ""}]}, "conversations[0].value", "empty_text"),
    (S, {"conversations": [{"from": "gpt", "value": "a"}]}, "conversations", "message_order"),
    (S, {"conversations": [{"from": "human", "value": "a"}]}, "conversations", "no_assistant_turn"),
    (D, {"prompt": "a", "chosen": "b"}, "rejected", "missing_field"),
    (D, {"prompt": "a", "chosen": "b", "rejected": ""}, "rejected", "empty_text"),
    (D, {"prompt": 1, "chosen": "b", "rejected": "c"}, "prompt", "wrong_type"),
    (D, {"chosen": "b", "rejected": "c"}, "prompt", "missing_prompt"),
    (D, {"prompt": "q", "chosen": [USER, ANSWER], "rejected": "c"}, "chosen", "message_order"),
    (
        D,
        {"chosen": [USER, ANSWER, USER, ANSWER], "rejected": [USER, ANSWER, turn("user", "c"), ANSWER]},
        "chosen",
        "message_order",
    ),
    (D, {"prompt": "a", "chosen": talk("user"), "rejected": "c"}, "chosen", "no_assistant_turn"),
    (D, {"input": 1, "preferred_output": [ANSWER], "non_preferred_output": [ANSWER]}, "input", "wrong_type"),
    (
        D,
        {"input": {}, "preferred_output": [ANSWER], "non_preferred_output": [ANSWER]},
        "input.messages",
        "wrong_type",
    ),
]


@pytest.mark.parametrize(("row_format", "row"), VALID)
def test_a_valid_row_is_met_with_silence(row_format: RowFormat, row: Row) -> None:
    assert validate_row(row, row_format) == []


@pytest.mark.parametrize(("row_format", "row", "field", "code"), FAULTY)
def test_each_fault_is_found_alone_with_its_field(
    row_format: RowFormat, row: Row, field: str | None, code: str
) -> None:
    (fault,) = validate_row(row, row_format)
    assert (fault.field, fault.code, fault.code.is_warning) == (field, code, False)
    assert fault.message.endswith(".")
    assert field is None or field in fault.message or code == "missing_prompt"


@pytest.mark.parametrize(
    ("row_format", "row", "code"),
    [
        (D, {"prompt": "a", "chosen": "b", "rejected": "b"}, "equal_answers"),
        (M, {"messages": talk("user", "user", "assistant")}, "repeated_role"),
        (M, {"messages": talk("user", "assistant", "assistant")}, "repeated_role"),
    ],
)
def test_what_is_usable_but_odd_is_a_warning(row_format: RowFormat, row: Row, code: str) -> None:
    (warning,) = validate_row(row, row_format)
    assert (warning.code, warning.code.is_warning) == (code, True)


def test_a_row_of_another_format_names_both() -> None:
    (fault,) = validate_row({"question": "a", "answer": "b"}, RowFormat.messages)
    assert "`question_answer`" in fault.message
    assert "`messages`" in fault.message


def test_fields_of_another_format_next_to_the_right_ones_are_not_a_fault() -> None:
    row = {"prompt": "a", "completion": "b", "messages": "notes"}
    assert validate_row(row, RowFormat.prompt_completion) == []


def test_a_row_with_a_million_faults_is_reported_in_twenty() -> None:
    assert len(validate_row({"messages": [{}] * 1_000_000}, RowFormat.messages)) == 20


def test_values_are_quoted_in_at_most_forty_characters() -> None:
    (fault,) = validate_row({"messages": [turn("x" * 10**6, "a"), ANSWER]}, RowFormat.messages)
    assert len(fault.message) < 300


def test_every_code_of_a_row_is_tested_here() -> None:
    tested = {code for *_, code in FAULTY} | {"equal_answers", "repeated_role"}
    codes = list(FaultCode)
    of_rows = codes[codes.index(FaultCode.unknown_format) : codes.index(FaultCode.blank_line)]
    assert tested >= set(of_rows)


ODD_VALUES: list[Any] = [
    None,
    "",
    " ",
    "text",
    0,
    1,
    2.5,
    True,
    [],
    {},
    [None],
    ["a"],
    {"role": "user"},
    [{}],
    "{}",
    "[]",
]
ODD_VALUES += ["user", "assistant", "system", "tool", USER, ANSWER, [USER, ANSWER], [CALL], [TOOL]]


def _mutate(row: Row, rng: random.Random) -> Row:
    row = copy.deepcopy(row)
    for _ in range(rng.randrange(1, 3)):
        parent: Any = None
        value: Any = row
        while isinstance(value, dict | list) and value and (parent is None or rng.random() < 0.7):
            parent = value
            key = rng.choice(list(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
            value = parent[key]
        parent[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    return row


@pytest.mark.parametrize("seed", range(20))
def test_every_row_that_passes_can_be_converted_and_measured(seed: int) -> None:
    rng, passed = random.Random(seed), 0
    for row_format, row in [(row_format, _mutate(row, rng)) for row_format, row in VALID * 20]:
        if all(fault.code.is_warning for fault in validate_row(row, row_format)):
            passed += 1
            assert preference_messages(row) if row_format.has_pairs else prompt_completions(row, row_format)
            measured = [
                ("system" if role == "developer" else role) for role, _ in turn_lengths(row, row_format)
            ]
            assert measured == [message["role"] for message in to_messages(row, row_format)]
            assert offered_tools(row) is None or isinstance(offered_tools(row), list)
    assert passed > 5
