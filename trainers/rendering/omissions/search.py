"""Search of a rendered text for every text, call and reasoning of its row.

A template is a program of somebody else. It may ignore a field or a role, and whatever it ignores is not
trained, although the file contains it. So the rendered text is searched for each part of a row in its order;
a part that is found only with other white space or in another form of JSON is rendered, but changed. The
search is a function of a row and its rendered texts, so that processes can share the rows of a file and merge
their counts.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from trainers.data.formats import Message, detect_format
from trainers.data.texts.unread_fields import unread_texts
from trainers.rendering.omissions.counts import Omission, OmissionKind
from trainers.rendering.omissions.field_names import message_field
from trainers.rendering.render import PromptCompletion

# Fields with the reasoning of a message; `template_program` gives it to templates under each of these names.
REASONING_FIELDS: Final = ("reasoning_content", "thinking", "reasoning")
THOUGHT_END: Final = "</think>"
# Fields of a message that are not text for the model.
OTHER_FIELDS: Final = frozenset({"role", "content", "tool_calls", "tool_call_id", "id", "type", "weight"})


def find_omissions(turns: Sequence[PromptCompletion], texts: Sequence[str]) -> list[Omission]:
    """Return what the rendered texts of a row lack.

    `turns` are all trained turns of a row in their order, or its chosen and its rejected completion; `texts`
    are the outputs of the template for them.
    """
    row = turns[0].source
    row_format = detect_format(row)
    if row_format is None:
        return []
    found: list[Omission] = []
    sides = ("chosen", "rejected") if row_format.has_pairs else ("",) * len(turns)
    for number, (turn, text, side) in enumerate(zip(turns, texts, sides, strict=False)):
        # A prompt is checked once: the last turn of a conversation has all others in its prompt.
        is_last = side == "chosen" or (not side and number == len(turns) - 1)
        omitted = list(_check_turn(turn, text, reports_prompt=is_last))
        found += [
            Omission(kind, message_field(row, row_format, index, side) + path, missing)
            for index, kind, path, missing in omitted
        ]
        if is_last and turn.tools:
            found += _check_tools(turn.tools, text)
    for path, text, is_named in unread_texts(row, row_format):
        if not any(text.strip() in rendered for rendered in texts):
            kind = OmissionKind.unread_field if is_named else OmissionKind.unread_prose
            found.append(Omission(kind, path, text))
    return found


class TextSearch:
    """A search through a part of a text, from a position to the end of the part."""

    def __init__(self, text: str, start: int = 0, end: int | None = None) -> None:
        self.text = text
        self.position = start
        self.end = len(text) if end is None else end
        self._folded: tuple[int, str] | None = None

    def finds(self, part: str) -> bool:
        """Return whether a part follows, and move to its end."""
        start = self.text.find(part, self.position, self.end)
        if start >= 0:
            self.position = start + len(part)
        return start >= 0

    def finds_folded(self, part: str) -> bool:
        """Return whether a part follows, whatever the white space in it."""
        if self._folded is None or self._folded[0] != self.position:
            self._folded = self.position, fold_space(self.text[self.position : self.end])
        return fold_space(part) in self._folded[1]


def fold_space(text: str) -> str:
    """Return a text without white space."""
    return "".join(text.split())


_MessagePart = tuple[OmissionKind, str, str]
"""Kind, path in a message, text."""
_Part = tuple[int, OmissionKind, str, str]
"""Index of a message, kind, path in the message, text."""


def _check_turn(turn: PromptCompletion, text: str, *, reports_prompt: bool) -> Iterator[_Part]:
    messages = [*turn.prompt, *turn.completion]
    if _are_rendered_unchanged(messages, text):
        return
    found = list(_find_contents(messages, len(turn.prompt), text))
    start = 0
    for index, message in enumerate(messages):
        end = next((place.start for place in found[index + 1 :] if place.end), len(text))
        is_prompt = index < len(turn.prompt)
        omitted = list(_check_message(found[index], message, text, start, end, is_prompt=is_prompt))
        start = max(start, found[index].end)
        lost = [part for part in omitted if _is_whole_part(*part)]
        if not is_prompt and lost and len(lost) == _count_parts(message):
            _, path, missing = lost[0]
            yield index, OmissionKind.completion, path, missing
        elif reports_prompt or not is_prompt:
            yield from ((index, *part) for part in omitted)


def _are_rendered_unchanged(messages: Sequence[Message], text: str) -> bool:
    """Return whether messages that are only texts follow each other in the rendered text."""
    position = 0
    for message in messages:
        content: str = message["content"]
        start = text.find(content, position)
        if start < 0 or len(message) > 2:
            return False
        position = start + len(content)
    return True


class _Place(NamedTuple):
    """Where the content of a message is, and how it is missing or changed; `end` is 0 if it was not found."""

    start: int
    end: int
    kind: OmissionKind | None


def _find_contents(messages: Sequence[Message], n_prompt: int, text: str) -> Iterator[_Place]:
    search = TextSearch(text)
    for index, message in enumerate(messages):
        before = search.position
        content: str = message["content"]
        kind = _check_content(search, message, index < n_prompt) if content else None
        end = search.position if search.position > before else 0
        yield _Place(end - len(content.strip()), end, kind)


def _is_whole_part(kind: OmissionKind, path: str, _: str) -> bool:
    """Return whether a content, a reasoning or a call is missing, rather than a piece of it."""
    return kind in (OmissionKind.text, OmissionKind.tool_call) or (
        kind is OmissionKind.reasoning and path != ""
    )


def _count_parts(message: Message) -> int:
    texts = (message["content"].strip(), _reasoning(message)[1])
    return sum(map(bool, texts)) + len(message.get("tool_calls") or ())


def _check_message(
    place: _Place, message: Message, text: str, start: int, end: int, *, is_prompt: bool
) -> Iterator[_MessagePart]:
    """Yield what is missing between the message before and the message after."""
    if place.kind is not None:
        yield place.kind, "", message["content"]
    if len(message) == 2:
        return
    name, reasoning = _reasoning(message)
    if reasoning:
        search = TextSearch(text, start, end)
        if not search.finds(reasoning) and not search.finds_folded(reasoning):
            kind = OmissionKind.earlier_reasoning if is_prompt else OmissionKind.reasoning
            yield kind, f".{name}", reasoning
    # Not to the message after: its content, if it is short, may also be in a call.
    search = TextSearch(text, start)
    for number, call in enumerate(message.get("tool_calls") or ()):
        kind_of_call = _check_call(search, call["function"])
        if kind_of_call is not None:
            yield kind_of_call, f".tool_calls[{number}]", json.dumps(call["function"], ensure_ascii=False)
    yield from _check_other_fields(message, text)


def _reasoning(message: Message) -> tuple[str, str]:
    """Return the field and the text of a message's reasoning."""
    for name in REASONING_FIELDS:
        if isinstance(text := message.get(name), str) and text.strip():
            return name, text.strip()
    return "", ""


def _check_content(search: TextSearch, message: Message, is_prompt: bool) -> OmissionKind | None:
    content: str = message["content"]
    if search.finds(content):
        return None
    stripped = content.strip()
    if search.finds(stripped):
        return OmissionKind.white_space
    # Some templates move a system message into another turn.
    if is_prompt and stripped in search.text:
        return None
    if search.finds_folded(content):
        return OmissionKind.white_space
    if message["role"] == "assistant" and THOUGHT_END in content:
        answer = content.rpartition(THOUGHT_END)[2].strip()
        if search.finds(answer) or search.finds_folded(answer):
            return OmissionKind.earlier_reasoning if is_prompt else OmissionKind.reasoning
    return OmissionKind.text


def _check_call(search: TextSearch, function: dict[str, Any]) -> OmissionKind | None:
    start = search.position
    if not search.finds(function["name"]):
        return OmissionKind.tool_call
    arguments = function.get("arguments")
    if not arguments:
        return None
    after_name, search.position = search.position, start
    for is_ascii in (False, True):
        if search.finds(json.dumps(arguments, ensure_ascii=is_ascii)):
            search.position = max(search.position, after_name)
            return None
    if any(
        search.finds_folded(json.dumps(arguments, ensure_ascii=is_ascii, sort_keys=is_sorted))
        for is_ascii in (False, True)
        for is_sorted in (False, True)
    ):
        search.position = after_name
        return OmissionKind.json_form
    # Some templates write each argument on its own, as in `<parameter=city>`.
    ends = []
    for leaf in _leaves(arguments):
        search.position = start
        if not any(search.finds(form) for form in _forms(leaf)):
            search.position = after_name
            return OmissionKind.tool_call
        ends.append(search.position)
    search.position = max([after_name, *ends])
    return OmissionKind.json_form


def _check_other_fields(message: Message, text: str) -> Iterator[_MessagePart]:
    for name, value in message.items():
        if name in OTHER_FIELDS or name in REASONING_FIELDS or not isinstance(value, str | list | dict):
            continue
        # The name of a tool is in its call, before the result.
        if name == "name" and message["role"] in ("tool", "assistant"):
            continue
        texts = (leaf for leaf in _leaves(value) if isinstance(leaf, str) and leaf.strip())
        missing = next((leaf for leaf in texts if not any(form in text for form in _forms(leaf))), None)
        if missing is not None:
            yield OmissionKind.unread_field, f".{name}", missing


def _check_tools(tools: Sequence[dict[str, Any]], rendered: str) -> Iterator[Omission]:
    search = TextSearch(rendered)
    for index, tool in enumerate(tools):
        function = tool.get("function", tool)
        name = function.get("name", "")
        if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", rendered):
            yield Omission(OmissionKind.tools, f"tools[{index}]", name)
            continue
        for text in _descriptions(function):
            if not any(form in rendered for form in _forms(text)) and not search.finds_folded(text):
                yield Omission(OmissionKind.tools, f"tools[{index}].function", text)
                break


def _descriptions(function: Any) -> Iterator[str]:
    if isinstance(function, dict):
        for name, value in function.items():
            if name == "description" and isinstance(value, str):
                yield value
            else:
                yield from _descriptions(value)
    elif isinstance(function, list):
        for element in function:
            yield from _descriptions(element)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for name, element in value.items():
            yield name
            yield from _leaves(element)
    elif isinstance(value, list):
        for element in value:
            yield from _leaves(element)
    elif value is not None:
        yield value


def _forms(leaf: Any) -> tuple[str, ...]:
    """Return the ways in which a template may write a value."""
    if isinstance(leaf, str):
        return leaf, json.dumps(leaf, ensure_ascii=False)[1:-1], json.dumps(leaf)[1:-1]
    return (json.dumps(leaf), str(leaf))
