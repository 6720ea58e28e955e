"""Every family's calls: what its grammar allows can be read, in pieces of any size."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from serving.engines.structured.call_parser import (
    ArgumentsDelta,
    CallBegin,
    CallEnd,
    CallParser,
    OutputEvent,
    TextDelta,
)
from serving.engines.structured.call_syntax import CallSyntax, Tool, find_call_syntax
from serving.engines.structured.constraint import Constraint, ConstraintState
from serving.engines.structured.grammar import Vocabulary, compile_grammar, load_vocabulary
from trainers.configs.engines import ToolCallParser

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [Tool("weather", CITY, True, {}), Tool("get-time.now", {"type": "object"}, False, {})]
ARGUMENTS = ['{"city": "}\\"{ [x]"}', "{}"]
END = "<|end|>"
MARKERS = [END, "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>"]
# Templates that show each form, and two calls in it.
FORMS = {
    "qwen": (
        "<tool_call>",
        '<tool_call>\n{{"name": "weather", "arguments": {0}}}\n</tool_call>\n'
        '<tool_call>\n{{"name": "get-time.now", "arguments": {1}}}\n</tool_call>',
    ),
    "llama3": (
        "<|python_tag|>",
        '{{"name": "weather", "parameters": {0}}}; {{"name": "get-time.now", "parameters": {1}}}',
    ),
    "mistral list": (
        "[TOOL_CALLS]",
        '[TOOL_CALLS][{{"name": "weather", "arguments": {0}}}, {{"name": "get-time.now", "arguments": {1}}}]',
    ),
    "mistral named": (
        "[TOOL_CALLS] [ARGS]",
        "[TOOL_CALLS]weather[ARGS]{0}[TOOL_CALLS]get-time.now[ARGS]{1}",
    ),
    "phi4_mini": (
        "functools",
        'functools[{{"name": "weather", "arguments": {0}}}, {{"name": "get-time.now", "arguments": {1}}}]',
    ),
}


class ByteTokenizer:
    """A fast tokenizer with a token for each byte, and for each marker."""

    is_fast = True

    def __init__(self) -> None:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {character: number for number, character in enumerate(alphabet)}
        self.backend_tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        self.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.backend_tokenizer.decoder = decoders.ByteLevel()
        self.backend_tokenizer.add_special_tokens([AddedToken(text, special=True) for text in MARKERS])


TOKENIZER = ByteTokenizer()
SIZE: int = TOKENIZER.backend_tokenizer.get_vocab_size()
END_ID = int(TOKENIZER.backend_tokenizer.token_to_id(END) or 0)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return load_vocabulary(TOKENIZER, SIZE, frozenset({END_ID}))


def form(name: str) -> tuple[CallSyntax, str]:
    template, text = FORMS[name]
    syntax = find_call_syntax(template, None)
    assert syntax is not None
    return syntax, text.format(*ARGUMENTS)


def read(syntax: CallSyntax, pieces: Sequence[str]) -> list[OutputEvent]:
    """Return the events of a completion, those of neighbouring texts joined."""
    parser = CallParser(syntax.patterns(TOOLS))
    events: list[OutputEvent] = []
    for event in [*(event for piece in pieces for event in parser.push(piece)), *parser.finish()]:
        last = events[-1] if events else None
        if isinstance(event, TextDelta) and isinstance(last, TextDelta):
            events[-1] = TextDelta(last.text + event.text)
        elif isinstance(event, ArgumentsDelta) and isinstance(last, ArgumentsDelta):
            events[-1] = ArgumentsDelta(last.text + event.text)
        else:
            events.append(event)
    return events


def cut(text: str, places: set[int]) -> list[str]:
    ends = sorted({0, len(text), *(place % len(text) for place in places)})
    return [text[start:end] for start, end in pairwise(ends)]


BOTH = [
    event
    for name, arguments in zip(("weather", "get-time.now"), ARGUMENTS, strict=True)
    for event in (CallBegin(name), ArgumentsDelta(arguments), CallEnd())
]


@pytest.mark.parametrize("name", FORMS)
@given(places=st.sets(st.integers(0, 10_000), max_size=60))
def test_calls_are_read_from_pieces_of_any_size(name: str, places: set[int]) -> None:
    syntax, text = form(name)
    assert read(syntax, cut(text, places)) == BOTH


@pytest.mark.parametrize("name", [name for name in FORMS if name != "llama3"])
@given(places=st.sets(st.integers(0, 10_000), max_size=60))
def test_text_before_calls_is_content_without_the_space_between(name: str, places: set[int]) -> None:
    syntax, text = form(name)
    assert read(syntax, cut(f"I look < it up.\n{text}\n", places)) == [TextDelta("I look < it up."), *BOTH]


@pytest.mark.parametrize("name", FORMS)
@given(places=st.sets(st.integers(0, 10_000), max_size=60))
def test_text_after_calls_keeps_its_spaces(name: str, places: set[int]) -> None:
    """Only a completion whose calls the grammar could not take over has text after them."""
    syntax, text = form(name)
    assert read(syntax, cut(f"{text}\nThat is; all,\n I know. ", places)) == [
        *BOTH,
        TextDelta("That is; all,\n I know. "),
    ]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    "text", ["a < b", "<tool_call", '{"name": "unknown", "arguments": {}}', "[TOOL", "functools", "{"]
)
def test_text_that_is_no_call_is_content(name: str, text: str) -> None:
    assert read(form(name)[0], list(text)) == [TextDelta(text)]


@pytest.mark.parametrize("name", FORMS)
def test_the_grammar_allows_what_is_read_and_then_an_end(name: str, vocabulary: Vocabulary) -> None:
    syntax, text = form(name)
    grammar = compile_grammar(vocabulary, "start: calls\n" + syntax.rules(vocabulary, TOOLS, True, True))
    matcher, ids = grammar.start(), vocabulary.encode(text)
    assert matcher.validate_tokens(ids) == len(ids)
    matcher.consume_tokens(ids)
    assert matcher.is_accepting()


@pytest.mark.parametrize("name", FORMS)
def test_a_call_that_has_begun_after_free_text_is_in_the_grammar(name: str, vocabulary: Vocabulary) -> None:
    syntax, text = form(name)
    grammar = compile_grammar(vocabulary, "start: calls\n" + syntax.rules(vocabulary, TOOLS, False, True))
    state = ConstraintState(Constraint(grammar, vocabulary, frozenset({END_ID}), syntax.trigger(TOOLS)))
    free = "" if name == "llama3" else "So < be it: "
    for character in free:
        state.advance(vocabulary.encode(character)[0], character)
        assert not state.in_force
    one = text[: text.index(ARGUMENTS[0])] + '{"city": "'
    for token in vocabulary.encode(one):
        state.advance(token, TOKENIZER.backend_tokenizer.decode([token], skip_special_tokens=False))
    assert state.in_force and state.error is None
    assert state.allows(vocabulary.encode("x")[0])
    assert not state.allows(END_ID)


def test_a_family_can_be_chosen_where_the_template_shows_none() -> None:
    assert find_call_syntax("{{ messages }}", None) is None
    chosen: Any = find_call_syntax("{{ messages }}", ToolCallParser.llama3)
    assert chosen.family is ToolCallParser.llama3
