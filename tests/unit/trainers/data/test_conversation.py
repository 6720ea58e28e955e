import copy
from typing import Any

import pytest

from trainers.data.checks import validate_row
from trainers.data.conversation import (
    extract_prompt_and_completion,
    offered_tools,
    preference_messages,
    prompt_completions,
    to_messages,
)
from trainers.data.formats import Message, Row, RowFormat


def user(text: Any) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


SINGLE_TURN: list[tuple[RowFormat, Row]] = [
    (RowFormat.messages, {"messages": [user("2+2?"), assistant("4")]}),
    (RowFormat.prompt_completion, {"prompt": "2+2?", "completion": "4"}),
    (RowFormat.prompt_completion, {"prompt": [user("2+2?")], "completion": [assistant("4")]}),
    (RowFormat.prompt_completion, {"prompt": [user("2+2?")], "completion": "4"}),
    (RowFormat.instruction, {"instruction": "2+2?", "response": "4"}),
    (RowFormat.alpaca, {"instruction": "2+2?", "input": "", "output": "4"}),
    (RowFormat.alpaca, {"instruction": "2+2?", "output": "4"}),
    (
        RowFormat.sharegpt,
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
    ),
    (RowFormat.question_answer, {"question": "2+2?", "answer": "4"}),
]


@pytest.mark.parametrize(("row_format", "row"), SINGLE_TURN)
def test_every_format_gives_the_same_prompt_and_completion(row_format: RowFormat, row: Row) -> None:
    assert prompt_completions(row, row_format) == [([user("2+2?")], [assistant("4")])]
    assert to_messages(row, row_format) == [user("2+2?"), assistant("4")]


@pytest.mark.parametrize(("row_format", "row"), SINGLE_TURN)
def test_the_row_itself_is_left_as_it_was(row_format: RowFormat, row: Row) -> None:
    before = copy.deepcopy(row)
    prompt_completions(row, row_format)
    assert row == before


def test_each_assistant_turn_is_trained_with_all_that_came_before() -> None:
    turns = [system("s"), user("a"), assistant("b"), user("c"), assistant("d")]
    assert prompt_completions({"messages": turns}, RowFormat.messages) == [
        (turns[:2], turns[2:3]),
        (turns[:4], turns[4:]),
    ]


def test_sharegpt_turns_keep_their_order_and_roles() -> None:
    spoken = [("system", "s"), ("human", "a"), ("gpt", "b"), ("tool", "t"), ("gpt", "c")]
    row = {"conversations": [{"from": speaker, "value": text} for speaker, text in spoken]}
    messages = to_messages(row, RowFormat.sharegpt)
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert [message["content"] for message in messages] == ["s", "a", "b", "t", "c"]


def test_alpaca_input_follows_the_instruction() -> None:
    row = {"instruction": "Translate.", "input": "안녕", "output": "hello"}
    assert to_messages(row, RowFormat.alpaca)[0] == user("Translate.\n\n안녕")


@pytest.mark.parametrize("row_format", [RowFormat.alpaca, RowFormat.question_answer, RowFormat.sharegpt])
def test_a_system_field_becomes_the_first_turn(row_format: RowFormat) -> None:
    row = next(row for candidate, row in SINGLE_TURN if candidate is row_format)
    assert to_messages(row | {"system": "Be brief."}, row_format)[0] == system("Be brief.")


def test_turns_within_a_prompt_are_not_trained() -> None:
    row = {"prompt": [user("a"), assistant("b"), user("c")], "completion": "d"}
    assert prompt_completions(row, RowFormat.prompt_completion) == [(row["prompt"], [assistant("d")])]


def test_turns_of_weight_zero_are_context_only() -> None:
    turns = [user("a"), assistant("b") | {"weight": 0}, user("c"), assistant("d") | {"weight": 1}]
    pairs = prompt_completions({"messages": turns}, RowFormat.messages)
    assert pairs == [([user("a"), assistant("b"), user("c")], [assistant("d")])]


def test_tool_calls_survive_with_their_arguments_as_an_object() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
    turns = [
        user("2+2?"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "4"},
        assistant("It is 4."),
    ]
    first, second = prompt_completions({"messages": turns}, RowFormat.messages)
    assert first[1][0]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 2}}
    assert first[1][0]["tool_calls"][0]["id"] == "c1"
    assert second[0][2] == turns[2]


def test_developer_turns_and_text_parts_become_what_templates_know() -> None:
    parts = [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]
    turns = [{"role": "developer", "content": "s"}, {"role": "user", "content": parts}, assistant("4")]
    assert to_messages({"messages": turns}, RowFormat.messages) == [
        system("s"),
        user("2+2?"),
        assistant("4"),
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": [user("q")], "chosen": [assistant("good")], "rejected": [assistant("bad")]},
        {"prompt": "q", "chosen": [user("q"), assistant("good")], "rejected": [user("q"), assistant("bad")]},
        {"chosen": [user("q"), assistant("good")], "rejected": [user("q"), assistant("bad")]},
        {
            "chosen": "\n\nHuman: q\n\nAssistant: good",
            "rejected": "\n\nHuman: q\n\nAssistant: bad",
        },
        {
            "input": {"messages": [user("q")]},
            "preferred_output": [assistant("good")],
            "non_preferred_output": [assistant("bad")],
        },
    ],
)
def test_every_shape_of_a_preference_row_gives_prompt_chosen_and_rejected(row: Row) -> None:
    assert preference_messages(row) == ([user("q")], [assistant("good")], [assistant("bad")])
    assert to_messages(row, RowFormat.preference) == [user("q"), assistant("good")]


def test_equal_conversations_keep_their_last_turn_as_the_answer() -> None:
    turns = [user("q"), assistant("same")]
    assert preference_messages({"chosen": turns, "rejected": turns}) == (turns[:1], turns[1:], turns[1:])


def test_a_preference_row_without_a_prompt_is_rejected() -> None:
    with pytest.raises(ValueError, match="has no prompt"):
        preference_messages({"chosen": "The answer is 4.", "rejected": "The answer is 5."})


def test_preference_rows_cannot_be_used_for_sft() -> None:
    with pytest.raises(ValueError, match="train on it with DPO"):
        prompt_completions({"prompt": "q", "chosen": "a", "rejected": "b"}, RowFormat.preference)


@pytest.mark.parametrize(
    ("row_format", "row"),
    [
        (RowFormat.messages, {"messages": "text"}),
        (RowFormat.messages, {"messages": [{"content": "no role"}]}),
        (RowFormat.messages, {"messages": [user("only a question")]}),
        (RowFormat.messages, {"messages": [assistant("only an answer")]}),
        (RowFormat.messages, {"messages": [user([{"type": "image_url"}]), assistant("a cat")]}),
        (RowFormat.messages, {}),
        (RowFormat.sharegpt, {"conversations": [{"from": "narrator", "value": "x"}]}),
        (RowFormat.prompt_completion, {"prompt": "a"}),
        (RowFormat.question_answer, {"question": 1, "answer": "b"}),
    ],
)
def test_an_invalid_row_is_an_error_that_names_its_field(row_format: RowFormat, row: Row) -> None:
    with pytest.raises(ValueError, match=r"\.$"):
        prompt_completions(row, row_format)


def test_tools_are_found_wherever_a_format_puts_them() -> None:
    offered = [{"type": "function", "function": {"name": "add"}}]
    assert offered_tools({"tools": offered}) == offered
    assert offered_tools({"tools": '[{"type": "function", "function": {"name": "add"}}]'}) == offered
    assert offered_tools({"input": {"messages": [], "tools": offered}}) == offered
    assert offered_tools({"messages": []}) is None


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2 + 2?"},
        {"question": "2 + 2?"},
        {"instruction": "2 + 2?"},
        {"messages": [{"role": "user", "content": "2 + 2?"}]},
        {"conversations": [{"from": "human", "value": "2 + 2?"}]},
    ],
)
def test_a_row_may_ask_without_an_answer(row: Row) -> None:
    assert extract_prompt_and_completion(row) == ([{"role": "user", "content": "2 + 2?"}], [])


def test_an_input_and_a_system_message_belong_to_what_is_asked() -> None:
    row = {"system": "Be brief.", "instruction": "Add:", "input": "2 + 2"}
    assert extract_prompt_and_completion(row)[0] == [system("Be brief."), user("Add:\n\n2 + 2")]


def test_the_prompt_is_everything_before_the_last_completion() -> None:
    row = {"prompt": "2 + 2?", "completion": "4", "extra": 1}
    assert extract_prompt_and_completion(row) == (
        [{"role": "user", "content": "2 + 2?"}],
        [{"role": "assistant", "content": "4"}],
    )


def test_the_completion_of_a_preference_row_is_the_chosen_one() -> None:
    row = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}
    assert extract_prompt_and_completion(row)[1] == [{"role": "assistant", "content": "4"}]


def test_a_row_without_a_prompt_is_rejected() -> None:
    with pytest.raises(ValueError, match="prompt"):
        extract_prompt_and_completion({"weather": "fine"})


PAIR = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
LLAMA = {"text": "<s>[INST] 2+2? [/INST] 4 </s>"}
EVERY_FORMAT = [*SINGLE_TURN, (RowFormat.llama, LLAMA), (RowFormat.preference, PAIR)]
OPENAI_PAIR = {
    "input": {"messages": [user("2+2?")]},
    "preferred_output": [assistant("4")],
    "non_preferred_output": [assistant("5")],
}


@pytest.mark.parametrize(
    ("row_format", "row"), [*EVERY_FORMAT, (RowFormat.preference, OPENAI_PAIR)], ids=lambda v: str(v)[:30]
)
def test_every_format_reads_the_fields_system_and_history(row_format: RowFormat, row: Row) -> None:
    introduced = row | {"system": "Be brief.", "history": [["1+1?", "2"]]}
    earlier = [system("Be brief."), user("1+1?"), assistant("2")]
    assert to_messages(introduced, row_format) == [*earlier, user("2+2?"), assistant("4")]
    assert validate_row(introduced, row_format) == []
    assert extract_prompt_and_completion(introduced) == ([*earlier, user("2+2?")], [assistant("4")])


def test_the_turns_of_history_are_trained_unless_they_precede_a_prompt() -> None:
    history = {"history": [["1+1?", "2"]]}
    alpaca = {"instruction": "2+2?", "input": "", "output": "4"} | history
    assert [completion for _, completion in prompt_completions(alpaca, RowFormat.alpaca)] == [
        [assistant("2")],
        [assistant("4")],
    ]
    row = {"prompt": "2+2?", "completion": "4"} | history
    assert len(prompt_completions(row, RowFormat.prompt_completion)) == 1


def test_a_completion_that_repeats_its_prompt_follows_the_system_message_once() -> None:
    row = {"system": "s", "prompt": [user("a")], "chosen": [user("a"), assistant("b")], "rejected": "c"}
    assert preference_messages(row) == ([system("s"), user("a")], [assistant("b")], [assistant("c")])


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("system", 5, "wrong_type"),
        ("system", "Be long.", "system_twice"),
        ("history", [["1+1?"]], "wrong_type"),
        ("history", ["1+1?", "2"], "wrong_type"),
    ],
)
def test_a_system_or_history_that_cannot_be_read_is_a_fault(field: str, value: Any, code: str) -> None:
    row = {"messages": [system("Be brief."), user("2+2?"), assistant("4")], field: value}
    assert [(fault.field, fault.code) for fault in validate_row(row, RowFormat.messages)] == [(field, code)]


def test_a_system_field_that_repeats_the_system_message_is_used_once() -> None:
    turns = [system("s"), user("a"), assistant("b")]
    assert to_messages({"messages": turns, "system": "s"}, RowFormat.messages) == turns


@pytest.mark.parametrize("arguments", [None, "null", "", "{}", {}])
def test_a_call_without_arguments_has_an_empty_object(arguments: Any) -> None:
    call = {"type": "function", "function": {"name": "now", "arguments": arguments}}
    row = {"messages": [user("Time?"), assistant("") | {"tool_calls": [call]}]}
    assert to_messages(row, RowFormat.messages)[1]["tool_calls"][0]["function"]["arguments"] == {}
    assert validate_row(row, RowFormat.messages) == []
