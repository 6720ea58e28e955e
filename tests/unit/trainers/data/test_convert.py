import json
from itertools import permutations
from typing import Any

import pytest

from trainers.data.checks import validate_row
from trainers.data.conversation import offered_tools, prompt_completions
from trainers.data.convert import RowShape, convert_row, detect_shape, keep_chosen
from trainers.data.faults import FaultCode
from trainers.data.formats import Message, Row, RowFormat
from trainers.data.llama import format_llama, parse_llama

OFFERED = [{"type": "function", "function": {"name": "add", "parameters": {}}}]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> Message:
    return {"role": "assistant", "content": text, **more}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


QUESTION, ANSWER = " 2+2?\n", "It is 4. "
PLAIN: dict[RowShape, Row] = {
    RowShape.messages: {"messages": [user(QUESTION), assistant(ANSWER)]},
    RowShape.prompt_completion: {"prompt": QUESTION, "completion": ANSWER},
    RowShape.instruction: {"instruction": QUESTION, "response": ANSWER},
    RowShape.alpaca: {"instruction": QUESTION, "input": "", "output": ANSWER},
    RowShape.sharegpt: {
        "conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]
    },
    RowShape.question_answer: {"question": QUESTION, "answer": ANSWER},
    RowShape.llama: {"text": f"<s>[INST] {QUESTION} [/INST] {ANSWER} </s>"},
}
SYSTEM: dict[RowShape, Row] = {
    RowShape.messages: {"messages": [system("s"), user("q"), assistant("a")]},
    RowShape.prompt_completion: {"prompt": [system("s"), user("q")], "completion": [assistant("a")]},
    RowShape.instruction: {"system": "s", "instruction": "q", "response": "a"},
    RowShape.alpaca: {"system": "s", "instruction": "q", "input": "", "output": "a"},
    RowShape.sharegpt: {
        "conversations": [
            {"from": "system", "value": "s"},
            {"from": "human", "value": "q"},
            {"from": "gpt", "value": "a"},
        ]
    },
    RowShape.question_answer: {"system": "s", "question": "q", "answer": "a"},
    RowShape.llama: {"text": "<s>[INST] <<SYS>>\ns\n<</SYS>>\n\nq [/INST] a </s>"},
}
TURNS = [user("a"), assistant("b"), user("c"), assistant("d")]
LONG: dict[RowShape, Row] = {
    RowShape.messages: {"messages": TURNS},
    RowShape.prompt_completion: {"prompt": TURNS[:1], "completion": TURNS[1:]},
    RowShape.sharegpt: {
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "gpt", "value": "b"},
            {"from": "human", "value": "c"},
            {"from": "gpt", "value": "d"},
        ]
    },
    RowShape.llama: {"text": "<s>[INST] a [/INST] b </s><s>[INST] c [/INST] d </s>"},
}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
OPENAI_CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
TOOL_TURN = {"role": "tool", "content": "4", "tool_call_id": "c1"}
CALLING = [user("q"), assistant("", tool_calls=[CALL]), TOOL_TURN, assistant("4")]
CALLS: dict[RowShape, Row] = {
    RowShape.messages: {"messages": CALLING, "tools": OFFERED},
    RowShape.prompt_completion: {"prompt": CALLING[:1], "completion": CALLING[1:], "tools": OFFERED},
}
CONTEXT: dict[RowShape, Row] = {
    RowShape.messages: {"messages": [user("a"), assistant("b", weight=0), user("c"), assistant("d")]},
    RowShape.prompt_completion: {"prompt": TURNS[:3], "completion": TURNS[3:]},
}
PAIRS: dict[RowShape, Row] = {
    RowShape.trl_preference: {"prompt": [user("q")], "chosen": [assistant("", tool_calls=[CALL])]}
    | {"rejected": [assistant("5")], "tools": OFFERED, "parallel_tool_calls": False},
    RowShape.openai_preference: {
        "input": {"messages": [user("q")], "tools": OFFERED, "parallel_tool_calls": False},
        "preferred_output": [assistant("", tool_calls=[OPENAI_CALL])],
        "non_preferred_output": [assistant("5")],
    },
}
PLAIN_PAIRS: dict[RowShape, Row] = {
    RowShape.trl_preference: {"prompt": "q", "chosen": "a", "rejected": "b"},
    RowShape.openai_preference: {
        "input": {"messages": [user("q")]},
        "preferred_output": [assistant("a")],
        "non_preferred_output": [assistant("b")],
    },
}
SAME: dict[str, dict[RowShape, Row]] = {
    "plain": PLAIN,
    "system": SYSTEM,
    "several turns": LONG,
    "tool calls": CALLS,
    "context": CONTEXT,
    "pairs": PAIRS,
    "plain pairs": PLAIN_PAIRS,
}
CASES = [(name, *pair) for name, rows in SAME.items() for pair in permutations(rows, 2)]


@pytest.mark.parametrize(("name", "source", "target"), CASES)
def test_a_row_converts_to_every_shape_that_can_represent_it_and_back(
    name: str, source: RowShape, target: RowShape
) -> None:
    row, expected = SAME[name][source], SAME[name][target]
    assert convert_row(row, source, target) == expected
    assert convert_row(expected, target, source) == row
    assert detect_shape(row) is source


@pytest.mark.parametrize(("name", "source", "target"), CASES)
def test_other_fields_and_offered_tools_come_along_and_the_row_stays_as_it_was(
    name: str, source: RowShape, target: RowShape
) -> None:
    row = SAME[name][source] | {"id": 7, "note": None}
    before = json.dumps(row)
    converted = convert_row(row, source, target)
    assert (converted["id"], converted["note"]) == (7, None)
    assert offered_tools(converted) == offered_tools(row)
    assert json.dumps(row) == before


@pytest.mark.parametrize("name", ["plain", "system", "several turns", "tool calls", "context"])
def test_what_is_trained_is_the_same_in_every_shape(name: str) -> None:
    first, *others = [prompt_completions(row, shape.row_format) for shape, row in SAME[name].items()]
    assert all(other == first for other in others)


MISSING = [
    (name, next(iter(rows)), target)
    for name, rows in SAME.items()
    for target in RowShape
    # A document is no conversation.
    if target is not RowShape.text and target not in rows and next(iter(rows)).has_pairs == target.has_pairs
]


@pytest.mark.parametrize(("name", "source", "target"), MISSING)
def test_the_error_names_what_a_shape_cannot_represent(name: str, source: RowShape, target: RowShape) -> None:
    with pytest.raises(ValueError, match=rf"`{target}`.*\.$") as caught:
        convert_row(SAME[name][source], source, target)
    lost = {"several turns": "messages", "tool calls": "tool_calls", "context": "weight"}[name]
    assert lost in str(caught.value)


def test_a_rejected_completion_is_neither_dropped_nor_invented() -> None:
    pair = PLAIN_PAIRS[RowShape.trl_preference]
    with pytest.raises(ValueError, match="without losing its rejected completion"):
        convert_row(pair, RowShape.trl_preference, RowShape.messages)
    with pytest.raises(ValueError, match="needs a rejected one"):
        convert_row(PLAIN[RowShape.messages], RowShape.messages, RowShape.trl_preference)
    assert keep_chosen(pair | {"id": 1}) == {"prompt": "q", "completion": "a", "id": 1}


def test_tools_cannot_be_converted_to_text() -> None:
    row = {"messages": [user("q"), assistant("a")], "tools": OFFERED}
    with pytest.raises(ValueError, match="`tools`"):
        convert_row(row, RowShape.messages, RowShape.llama)
    assert convert_row(row, RowShape.messages, RowShape.sharegpt)["tools"] == OFFERED


@pytest.mark.parametrize(
    ("row", "source", "target", "field"),
    [
        (PLAIN[RowShape.messages] | {"history": "h"}, RowShape.messages, RowShape.question_answer, "history"),
        (PLAIN[RowShape.messages] | {"prompt": "p"}, RowShape.messages, RowShape.prompt_completion, "prompt"),
        (
            {"conversations": [{"from": "human", "value": "q", "weight": 1}, {"from": "gpt", "value": "a"}]},
            RowShape.sharegpt,
            RowShape.messages,
            r"conversations\[0\].weight",
        ),
        (
            {"messages": [user("q") | {"name": "Ann"}, assistant("a")]},
            RowShape.messages,
            RowShape.alpaca,
            "name",
        ),
    ],
)
def test_the_error_names_a_field_that_would_change_its_meaning(
    row: Row, source: RowShape, target: RowShape, field: str
) -> None:
    with pytest.raises(ValueError, match=f"`{field}`"):
        convert_row(row, source, target)


def test_the_fields_system_and_history_become_messages_of_the_target() -> None:
    row = {"system": "s", "history": [["a", "b"]], "messages": [user("q"), assistant("a")], "id": 1}
    turns = [system("s"), user("a"), assistant("b"), user("q"), assistant("a")]
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    assert convert_row(row, RowShape.messages, RowShape.sharegpt) == {
        "conversations": [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns],
        "id": 1,
    }
    with pytest.raises(ValueError, match="without losing 2 of its 4 messages"):
        convert_row(row, RowShape.messages, RowShape.question_answer)


def test_other_fields_may_not_make_the_row_look_like_another_format() -> None:
    row = {"question": "q", "answer": "a", "chosen": 1, "rejected": 2}
    with pytest.raises(ValueError, match="detected as `trl_preference`"):
        convert_row(row, RowShape.question_answer, RowShape.instruction)


def test_an_invalid_row_is_not_converted() -> None:
    with pytest.raises(ValueError, match=r"not valid as `messages`.*ends with a user message"):
        convert_row(
            {"messages": [user("a"), assistant("b"), user("c")]}, RowShape.messages, RowShape.sharegpt
        )
    with pytest.raises(ValueError, match="other shape of preference pairs"):
        convert_row(PLAIN_PAIRS[RowShape.trl_preference], RowShape.openai_preference, RowShape.trl_preference)


def test_the_input_of_alpaca_joins_its_instruction() -> None:
    row = {"instruction": "Translate.", "input": "안녕", "output": "Hi"}
    assert convert_row(row, RowShape.alpaca, RowShape.question_answer) == {
        "question": "Translate.\n\n안녕",
        "answer": "Hi",
    }


def test_text_parts_and_developer_messages_are_normalized() -> None:
    parts = [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]
    turns = [{"role": "developer", "content": "s"}, {"role": "user", "content": parts}, assistant("4")]
    expected = {"system": "s", "question": "2+2?", "answer": "4"}
    assert convert_row({"messages": turns}, RowShape.messages, RowShape.question_answer) == expected


@pytest.mark.parametrize(
    "text",
    [
        "[INST]q[/INST]a",
        "<s>[INST] q [/INST] a </s>",
        " <s> [INST] q [/INST] a </s>\n",
        "<s>[INST] q [/INST] a </s><s>",
    ],
)
def test_llama_text_is_parsed_in_its_common_variants(text: str) -> None:
    assert parse_llama(text) == [user("q"), assistant("a")]


@pytest.mark.parametrize(
    "text",
    [
        "[INST] q",
        "[INST] q [/INST] a [/INST] b",
        "[INST] q [/INST] a </s> and more",
        "[INST] q [/INST] a <s>[INST] q [/INST] a",
        "[INST] <<SYS>> s [/INST] a",
        "before [INST] q [/INST] a",
    ],
)
def test_llama_text_with_a_misplaced_marker_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"`text`"):
        parse_llama(text)


@pytest.mark.parametrize("mark", ["[INST]", "[/INST]", "<<SYS>>", "</s>", "<s>"])
def test_llama_text_cannot_contain_its_own_markers(mark: str) -> None:
    with pytest.raises(ValueError, match=r"messages\[1\] contains the template.s marker"):
        format_llama([user("q"), assistant(f"a {mark}")])


def test_llama_rows_are_validated_like_conversations() -> None:
    assert validate_row(PLAIN[RowShape.llama], RowFormat.llama) == []
    (fault,) = validate_row({"text": "[INST] q [/INST]"}, RowFormat.llama)
    assert (fault.field, fault.code) == ("text[1].content", FaultCode.empty_text)
    (fault,) = validate_row({"text": "[INST] q"}, RowFormat.llama)
    assert fault.code is FaultCode.invalid_marks
    (fault,) = validate_row({"text": "A plain text."}, RowFormat.llama)
    assert fault.code is FaultCode.other_format


def test_a_document_is_not_a_conversation() -> None:
    row = {"text": "A plain text."}
    assert convert_row(row, RowShape.text, RowShape.text) is row
    with pytest.raises(ValueError, match="a `text` has no messages"):
        convert_row(row, RowShape.text, RowShape.prompt_completion)
