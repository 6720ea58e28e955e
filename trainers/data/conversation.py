"""Rows of every format as chat messages, in the form that Hugging Face chat templates render.

Two things are brought into that form: tool arguments, which OpenAI writes as a JSON string, become an
object (a template would otherwise encode them twice, unlike the engines, which decode them), and text parts
become one string. `developer` is OpenAI's newer word for `system`, which templates do not know.
"""

import json
import re
from typing import Any

from trainers.data.formats import (
    FLAT_FIELDS,
    SHAREGPT_ROLES,
    Message,
    Row,
    RowFormat,
    detect_format,
    is_openai_preference,
)
from trainers.data.llama import parse_llama


def prompt_completions(row: Row, row_format: RowFormat) -> list[tuple[list[Message], list[Message]]]:
    """One (prompt, completion) pair per assistant turn; the prompt of a turn holds all that came before.

    Turns of `messages` rows with `"weight": 0` give no pair, and assistant turns within the `prompt` of a
    `prompt_completion` row neither. Raises ValueError for preference rows and for rows which validation
    would refuse.
    """
    if row_format is RowFormat.preference:
        raise ValueError(
            "Preference rows hold two answers and cannot be used for SFT: "
            "train on them with DPO, or keep only `prompt` and `chosen` under the names "
            "`prompt` and `completion`."
        )
    prompt_length = len(prompt_messages(row)) if row_format is RowFormat.prompt_completion else 1
    messages = weighted_messages(row, row_format)
    clean = [_without_weight(message) for message in messages]
    turns = [i for i in range(prompt_length, len(messages)) if _is_trained(messages[i])]
    if not turns:
        raise ValueError("The row needs an assistant turn after a user turn: it holds nothing to train on.")
    return [(clean[:turn], [clean[turn]]) for turn in turns]


def extract_prompt_and_answer(row: Row) -> tuple[list[Message], list[Message]]:
    """What a row of any format asks at its end, and the answer that it holds: none in a row that only asks.

    Of a preference row it is the chosen answer. Raises ValueError for a row that asks nothing.
    """
    row_format = detect_format(row)
    if row_format is RowFormat.preference:
        prompt, chosen, _ = preference_messages(row)
        return prompt, chosen
    if row_format is not None and to_messages(row, row_format)[-1]["role"] == "assistant":
        return prompt_completions(row, row_format)[-1]
    if row_format is not None:
        return to_messages(row, row_format), []
    for flat in (RowFormat.alpaca, RowFormat.question_answer):
        question, answer = FLAT_FIELDS[flat]
        if question in row:
            return _from_flat({**row, answer: ""}, flat)[:-1], []
    return prompt_messages(row), []


def to_messages(row: Row, row_format: RowFormat) -> list[Message]:
    """The row as one conversation; a preference row is shown with its chosen answer.

    Raises ValueError for a row which validation would refuse.
    """
    return [_without_weight(message) for message in weighted_messages(row, row_format)]


def preference_messages(row: Row) -> tuple[list[Message], list[Message], list[Message]]:
    """Prompt, chosen and rejected of a preference row.

    Without a `prompt` field, the prompt is what both conversations share; an answer that repeats the prompt
    is cut to what follows it. Raises ValueError when there is no prompt to be found.
    """
    if is_openai_preference(row):
        prompt = _messages(_object(row.get("input"), "input").get("messages"), "input.messages")
        return (
            prompt,
            _answer(row, "preferred_output"),
            _answer(row, "non_preferred_output"),
        )
    chosen, rejected = _answer(row, "chosen"), _answer(row, "rejected")
    if row.get("prompt") is None:
        return _split_at_difference(chosen, rejected)
    prompt = prompt_messages(row)
    return prompt, _after_prompt(chosen, prompt), _after_prompt(rejected, prompt)


def weighted_messages(row: Row, row_format: RowFormat) -> list[Message]:
    """As `as_messages`, with the `weight` that says whether a turn is trained, where the row gives one."""
    if row_format is RowFormat.messages:
        return _messages(row.get("messages"), "messages")
    if row_format is RowFormat.sharegpt:
        turns = _list(row.get("conversations"), "conversations")
        return [*_system(row), *(_from_sharegpt(turn) for turn in turns)]
    if row_format is RowFormat.prompt_completion:
        return [*prompt_messages(row), *_answer(row, "completion")]
    if row_format is RowFormat.preference:
        prompt, chosen, _ = preference_messages(row)
        return [*prompt, *chosen]
    if row_format is RowFormat.llama:
        return parse_llama(_text(row.get("text"), "text"))
    return _from_flat(row, row_format)


def prompt_messages(row: Row) -> list[Message]:
    """The `prompt` of a row, be it a text or messages, as messages."""
    prompt = row.get("prompt")
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _messages(prompt, "prompt")


def offered_tools(row: Row) -> list[dict[str, Any]] | None:
    """The functions which the row offers to the model, as a chat template takes them; None without any."""
    offered = row.get("tools")
    if offered is None and isinstance(row.get("input"), dict):
        offered = row["input"].get("tools")
    if isinstance(offered, str):
        offered = json.loads(offered) if offered.strip() else None
    return offered or None


def _from_flat(row: Row, row_format: RowFormat) -> list[Message]:
    prompt_field, completion_field = FLAT_FIELDS[row_format]
    prompt = _text(row.get(prompt_field), prompt_field)
    if row_format is RowFormat.alpaca and row.get("input"):
        prompt = f"{prompt}\n\n{_text(row['input'], 'input')}"
    completion = _text(row.get(completion_field), completion_field)
    return [
        *_system(row),
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": completion},
    ]


def _from_sharegpt(turn: Any) -> Message:
    if not isinstance(turn, dict) or turn.get("from") not in SHAREGPT_ROLES:
        raise ValueError(f"Every turn of `conversations` needs a `from` out of {', '.join(SHAREGPT_ROLES)}.")
    return {
        "role": SHAREGPT_ROLES[turn["from"]],
        "content": _text(turn.get("value"), "conversations[].value"),
    }


def _system(row: Row) -> list[Message]:
    return [{"role": "system", "content": _text(row["system"], "system")}] if row.get("system") else []


def _answer(row: Row, field: str) -> list[Message]:
    answer = row.get(field)
    if isinstance(answer, str):
        return [{"role": "assistant", "content": answer}]
    return _messages(answer, field)


def _messages(messages: Any, field: str) -> list[Message]:
    return [_normalized(message, field) for message in _list(messages, field)]


def _normalized(message: Any, field: str) -> Message:
    if not isinstance(message, dict) or "role" not in message:
        raise ValueError(f"Every entry of `{field}` must be an object with a `role`.")
    changed = {"role": message["role"], "content": _content(message.get("content"), field)}
    changed |= {name: value for name, value in message.items() if value is not None and name not in changed}
    if message["role"] == "developer":
        changed["role"] = "system"
    if message.get("tool_calls"):
        changed["tool_calls"] = [_tool_call(call) for call in message["tool_calls"]]
    return changed


def _content(content: Any, field: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(_part_text(part, field) for part in _list(content, f"{field}[].content"))


def _part_text(part: Any, field: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        raise ValueError(f"`{field}[].content` may hold parts of type `text` only.")
    return _text(part.get("text"), f"{field}[].content[].text")


def _tool_call(call: Any) -> dict[str, Any]:
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        raise ValueError("Every entry of `tool_calls` needs a `function` with `name` and `arguments`.")
    function = dict(call["function"])
    if isinstance(function.get("arguments"), str):
        function["arguments"] = json.loads(function["arguments"] or "{}")
    return {**call, "function": function}


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"`{field}` must be a list that is not empty.")
    return value


def _object(value: Any, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"`{field}` must be an object.")
    return value


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"`{field}` must be a string.")
    return value


def _without_weight(message: Message) -> Message:
    return {name: value for name, value in message.items() if name != "weight"}


def _is_trained(message: Message) -> bool:
    return bool(message["role"] == "assistant" and message.get("weight", 1) != 0)


def _split_at_difference(
    chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    chosen, rejected = _transcript(chosen), _transcript(rejected)
    longest = min(len(chosen), len(rejected)) - 1
    shared = 0
    while shared < longest and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == 0:
        raise ValueError("The row needs a `prompt`, or a `chosen` and a `rejected` that begin alike.")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _transcript(answer: list[Message]) -> list[Message]:
    """Anthropic's helpfulness pairs write whole dialogues as text: `\\n\\nHuman: …\\n\\nAssistant: …`."""
    text = "\n\n" + answer[0]["content"].lstrip("\n")
    if len(answer) > 1 or not text.startswith("\n\nHuman:"):
        return answer
    pieces = re.split(r"\n\n(Human|Assistant): ?", text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[speaker], "content": said}
        for speaker, said in zip(pieces[::2], pieces[1::2], strict=True)
    ]


def _after_prompt(answer: list[Message], prompt: list[Message]) -> list[Message]:
    repeats = len(answer) > len(prompt) and answer[: len(prompt)] == prompt
    return answer[len(prompt) :] if repeats else answer
