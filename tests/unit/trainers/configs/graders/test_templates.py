"""Templates of graders: a variable that no row can have is refused, and no value is read as a template."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.configs.graders.templates import SampleUnsuitable, VariableMissing, parse_template
from trainers.graders.result import Sample

ITEM = {
    "answer": "서울",
    "n": 1.0,
    "none": None,
    "deep": {"list": [{"키": "v"}]},
    "a b": "quoted",
    "x-1": "dash",
}
CALLS = [{"id": "call_1", "type": "function", "function": {"name": "get_acceptors", "arguments": '{"a": 1}'}}]


def render(template: str, completion: str = "hi", **item: Any) -> str:
    sample = Sample(completion, CALLS)
    return parse_template(template).render({"item": {**ITEM, **item}, "sample": sample.values})


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("no variable, a brace { and }}", "no variable, a brace { and }}"),
        ("{{ item.answer }} and {{sample.output_text}}", "서울 and hi"),
        ("{{item.n}}{{item.none}}", "1.0null"),
        ('{"smiles": "{{item.answer}}"}', '{"smiles": "서울"}'),
        ("{{ item.deep.list[0].키 }}", "v"),
        ("{{ item.deep }}", '{"list": [{"키": "v"}]}'),
        ('{{ item["a b"] }}{{ item.x-1 }}', "quoteddash"),
        ("{{sample.output_tools[0].function.name}}", "get_acceptors"),
        ("{{sample.choices[0].message.content}}", "hi"),
        ("{{sample.choices[0].message.tool_calls[0].function.arguments}}", '{"a": 1}'),
    ],
)
def test_a_variable_is_replaced_by_its_value(template: str, text: str) -> None:
    assert render(template) == text


def test_the_json_of_a_completion_can_be_read() -> None:
    assert render("{{sample.output_json.name}}", '{"name": "Kim"}') == "Kim"
    assert render("{{sample.output_json[1]}}", "[1, {}]") == "{}"


@pytest.mark.parametrize("completion", ["not JSON", "", '{"name": NaN}', "[" * 100_000, "9" * 5000])
def test_a_completion_that_is_not_json_has_none(completion: str) -> None:
    with pytest.raises(SampleUnsuitable, match="needs a completion that is JSON"):
        render("{{sample.output_json.name}}", completion)


@pytest.mark.parametrize(
    "template",
    ["{{item.missing}}", "{{item.deep.list[1]}}", "{{item.answer.x}}", "{{item.deep[0]}}", "{{item.n[0]}}"],
)
def test_a_field_that_a_row_lacks_is_named(template: str) -> None:
    with pytest.raises(VariableMissing, match="has no value: there is no `item"):
        render(template)


@pytest.mark.parametrize("template", ["{{sample.output_json.b}}", "{{sample.output_tools[1].id}}"])
def test_a_field_that_a_completion_lacks_is_its_own_fault(template: str) -> None:
    with pytest.raises(SampleUnsuitable, match="has no value: there is no `sample"):
        render(template, '{"a": 1}')


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ system.prompt }}", "unknown namespace"),
        ("{{ items.answer }}", "unknown namespace"),
        ("{{ }}", "unknown namespace"),
        ("{{ 7 * 7 }}", "not a path"),
        ("{{ item }}", "names no variable"),
        ("{{ sample.output_audio.data }}", "is not a variable of a completion"),
        ("{{ sample.__class__ }}", "is not a variable of a completion"),
        ("{{ item.answer | upper }}", "not a path"),
        ("{{ item.answer() }}{% if %}", None),
        ("{{ item..a }}", "not a path"),
        ("{{ item.a", "is not closed"),
        ("{{item.a}}" * 101, "more than 100 variables"),
    ],
)
def test_a_template_that_no_row_fills_is_refused(template: str, reason: str | None) -> None:
    if reason is None:  # Parentheses are characters of a field's name, and nothing is called.
        with pytest.raises(VariableMissing):
            render(template)
        return
    with pytest.raises(ValueError, match=reason):
        parse_template(template)


def test_a_value_is_never_read_as_a_template() -> None:
    assert render("{{item.answer}}", answer="{{item.n}} {{item.answer}}") == "{{item.n}} {{item.answer}}"


@given(st.text(max_size=200))
def test_any_text_is_refused_or_rendered(text: str) -> None:
    try:
        template = parse_template(text)
    except ValueError:
        return
    assert template.variables or "".join(map(str, template.parts)) == text


def test_many_open_braces_take_no_longer_than_other_text() -> None:
    with pytest.raises(ValueError, match="not closed"):
        parse_template("{{" * 32_768)
