import pytest

from trainers.data.formats import Row, RowFormat, detect_format, has_format

ROWS = [
    ({"messages": []}, RowFormat.messages),
    ({"messages": [], "tools": []}, RowFormat.messages),
    ({"prompt": "a", "completion": "b"}, RowFormat.prompt_completion),
    ({"instruction": "a", "response": "b"}, RowFormat.instruction),
    ({"instruction": "a", "output": "b"}, RowFormat.alpaca),
    ({"instruction": "a", "input": "c", "output": "b"}, RowFormat.alpaca),
    ({"conversations": []}, RowFormat.sharegpt),
    ({"question": "a", "answer": "b"}, RowFormat.question_answer),
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, RowFormat.preference),
    ({"chosen": "b", "rejected": "c"}, RowFormat.preference),
    ({"input": {}, "preferred_output": [], "non_preferred_output": []}, RowFormat.preference),
]


@pytest.mark.parametrize(("row", "expected"), ROWS)
def test_fields_name_the_format(row: Row, expected: RowFormat) -> None:
    assert detect_format(row) is expected


@pytest.mark.parametrize("row", [{}, {"prompt": "a"}, {"instruction": "a", "answer": "b"}])
def test_other_fields_name_no_format(row: Row) -> None:
    assert detect_format(row) is None


def test_preference_has_precedence_over_messages_in_the_same_row() -> None:
    row = {"prompt": "a", "chosen": [], "rejected": [], "messages": []}
    assert detect_format(row) is RowFormat.preference
    assert has_format(row, RowFormat.messages)


def test_wrong_types_do_not_hide_the_format() -> None:
    assert detect_format({"messages": 5}) is RowFormat.messages


def test_only_preference_rows_are_pairs() -> None:
    assert [row_format for row_format in RowFormat if row_format.has_pairs] == [RowFormat.preference]
