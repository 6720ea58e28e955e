"""Goal: what programs leave in text is found, and code, formulas, JSON and lists are not taken for it."""

import pytest

from trainers.data.texts.leftovers import (
    TEMPLATE_MARKS,
    find_escaped_line_break,
    find_missing_value,
    find_placeholder,
    find_template_mark,
)


@pytest.mark.parametrize("text", ["nan", "NaN", " null ", "None", "N/A", "<NA>", "[object Object]"])
def test_a_missing_value_is_the_whole_text(text: str) -> None:
    assert find_missing_value(text) == 0
    assert find_missing_value(f"It is {text}") is None


@pytest.mark.parametrize("text", ["None.", "none", "Nan is my aunt", "0", "", "A", "no", "NA"])
def test_an_answer_is_not_a_missing_value(text: str) -> None:
    assert find_missing_value(text) is None


@pytest.mark.parametrize(
    "placeholder",
    [
        "{text}",
        "{{ name }}",
        "{{name}}",
        "${topic}",
        "%(name)s",
        "[Your Name]",
        "[insert date here]",
        "<your city>",
    ],
)
def test_a_placeholder_is_found(placeholder: str) -> None:
    assert find_placeholder(f"Dear {placeholder}, welcome.") == 5


@pytest.mark.parametrize(
    "text",
    [
        r"\frac{ab}{cd} + x_{max} + \text{if} \{ab\}",
        "The set {a, b} and {x} and {12}",
        'print(f"Hello {name}")',
        "Use `{name}` in the template.",
        "```python\nx = '{name}'\n```",
        '{"name": "Kim", "tags": {"a": 1}}',
        "GET /users/{user_id}/posts",
        "const a = `${name}`;\nreturn a;",
        "see [your last mail](http://x.y) and [1]",
        "if a < your and b > c",
        "100 % (about) [sic] <b>bold</b>",
    ],
)
def test_braces_of_code_formulas_and_links_are_no_placeholder(text: str) -> None:
    assert find_placeholder(text) is None


@pytest.mark.parametrize("mark", [*TEMPLATE_MARKS, "</s>"])
def test_a_mark_of_a_template_is_found(mark: str) -> None:
    assert find_template_mark(f"The answer is 4.{mark}") == 16


@pytest.mark.parametrize(
    "text", ["<s>old</s> new", "Use `<|im_end|>`.", "a <b> [1] </div>", "x[INSTANCE]", "<s>a</s>b"]
)
def test_html_and_code_have_no_marks(text: str) -> None:
    assert find_template_mark(text) is None


@pytest.mark.parametrize("text", [r"One.\nTwo.", r"One\n\ntwo", r"첫째\n둘째", r"a\nthe end", r"end\n"])
def test_an_escaped_line_break_is_found(text: str) -> None:
    assert find_escaped_line_break(text) == text.index("\\")


@pytest.mark.parametrize(
    "text",
    [
        r"$\nabla f \neq \nu$",
        'printf("done\\n")',
        '{"text": "a\\nb"}',
        "first\nprint('a\\nb')",
        r"`\n` is a line feed",
        r"\not\in \notin \nexists",
    ],
)
def test_formulas_strings_and_json_have_no_escaped_line_break(text: str) -> None:
    assert find_escaped_line_break(text) is None
