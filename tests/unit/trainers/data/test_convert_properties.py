"""Conversion keeps the trained texts, weights, tools and all other fields, or refuses the row."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import QUICK, THOROUGH
from trainers.data.conversation import offered_tools, prompt_completions
from trainers.data.convert import OWN_FIELDS, RowShape, convert_row, detect_shape
from trainers.data.formats import Row

SHAPES = [shape for shape in RowShape if not shape.has_pairs]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
chats = st.tuples(
    st.none() | texts,
    st.lists(st.tuples(texts, texts, st.sampled_from([None, 0, 1])), min_size=1, max_size=3),
)
own_fields = frozenset[str]().union(*OWN_FIELDS.values())
other_fields = st.dictionaries(
    texts.filter(lambda name: name not in own_fields | {"label", "kto", "chosen", "rejected"}),
    st.none() | st.integers() | texts,
    max_size=2,
)


def write_messages(chat: tuple[str | None, list[tuple[str, str, int | None]]]) -> Row:
    system, turns = chat
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for question, answer, weight in turns:
        reply = {"role": "assistant", "content": answer}
        messages += [
            {"role": "user", "content": question},
            reply if weight is None else {**reply, "weight": weight},
        ]
    return {"messages": messages}


def check_conversion(
    chat: tuple[str | None, list[tuple[str, str, int | None]]], others: Row, tools: bool, target: RowShape
) -> None:
    row = write_messages(chat) | others | ({"tools": TOOLS} if tools else {})
    try:
        converted = convert_row(row, RowShape.messages, target)
    except ValueError:
        return
    assert detect_shape(converted) is target
    assert {name: converted[name] for name in others} == others
    assert offered_tools(converted) == offered_tools(row)
    trained = prompt_completions(row, RowShape.messages.row_format)
    assert prompt_completions(converted, target.row_format) == trained
    back = convert_row(converted, target, RowShape.messages)
    assert prompt_completions(back, RowShape.messages.row_format) == trained
    assert {name: back[name] for name in others} == others


@QUICK
@given(chats, other_fields, st.booleans(), st.sampled_from(SHAPES))
def test_a_conversation_keeps_everything_in_every_shape_and_back(
    chat: tuple[str | None, list[tuple[str, str, int | None]]], others: Row, tools: bool, target: RowShape
) -> None:
    check_conversion(chat, others, tools, target)


@pytest.mark.slow
@THOROUGH
@given(chats, other_fields, st.booleans(), st.sampled_from(SHAPES))
def test_many_conversations(
    chat: tuple[str | None, list[tuple[str, str, int | None]]], others: Row, tools: bool, target: RowShape
) -> None:
    check_conversion(chat, others, tools, target)


@QUICK
@given(texts, texts, texts, other_fields, st.sampled_from(["trl", "openai"]))
def test_a_preference_pair_keeps_both_completions(
    prompt: str, chosen: str, rejected: str, others: Row, source: str
) -> None:
    user, good, bad = (
        [{"role": role, "content": text}]
        for role, text in (("user", prompt), ("assistant", chosen), ("assistant", rejected))
    )
    rows: dict[RowShape, Row] = {
        RowShape.trl_preference: {"prompt": user, "chosen": good, "rejected": bad} | others,
        RowShape.openai_preference: {
            "input": {"messages": user},
            "preferred_output": good,
            "non_preferred_output": bad,
        }
        | others,
    }
    first, second = rows if source == "trl" else reversed(rows)
    try:
        converted = convert_row(rows[first], first, second)
    except ValueError:
        assert chosen == rejected or not (prompt.strip() and chosen.strip() and rejected.strip())
        return
    back = convert_row(converted, second, first)
    assert convert_row(back, first, second) == converted
    assert {name: converted[name] for name in others} == others
    assert {prompt, chosen, rejected} <= set(find_texts(converted))


def find_texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for child in value.values() for text in find_texts(child)]
    if isinstance(value, list):
        return [text for child in value for text in find_texts(child)]
    return [value] if isinstance(value, str) else []
