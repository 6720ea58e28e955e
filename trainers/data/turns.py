"""Checks of a conversation: each message, then their order."""

import json
from typing import Any, Final, NamedTuple

from trainers.data.faults import Fault, FaultCode, quote_value, type_name
from trainers.data.formats import MESSAGE_ROLES, SHAREGPT_ROLES
from trainers.data.texts.folding import is_blank

# One fault makes a row invalid; more than these do not help, and a bad row may contain a million.
MAX_ROW_FAULTS: Final = 20


class TurnFields(NamedTuple):
    """Names of the fields for role and text in a message of a format, and its roles."""

    role: str
    content: str
    roles: dict[str, str]


OPENAI_TURN: Final = TurnFields("role", "content", MESSAGE_ROLES)
SHAREGPT_TURN: Final = TurnFields("from", "value", SHAREGPT_ROLES)


# Nearly every conversation is an optional system message, then user and assistant in alternation.
_PLAIN_NEXT: Final = {
    "": ("user", "system"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
}


def is_plain_conversation(messages: Any) -> bool:
    """Return whether a conversation is surely valid, at a third of the cost of `check_conversation`.

    If the result is False, the conversation may still be valid: call that function.
    """
    if type(messages) is not list:
        return False
    previous = ""
    try:
        for message in messages:
            content, role = message["content"], message["role"]
            if len(message) != 2 or type(content) is not str:
                return False
            # A text that begins with a character of ASCII other than white space needs no call.
            if not "!" <= content < "\x7f" and is_blank(content):
                return False
            if role not in _PLAIN_NEXT[previous]:
                return False
            previous = role
    except (TypeError, KeyError):
        return False
    return previous == "assistant"


def check_conversation(
    messages: Any,
    field: str,
    faults: list[Fault],
    *,
    turn: TurnFields = OPENAI_TURN,
    begins: tuple[str, ...] = ("user",),
    ends: bool = True,
) -> bool:
    """Append the faults of a list of messages; return whether they are warnings only, or none.

    `begins` are the roles that may come first, after an optional system message; with `ends`, the last
    message must be an assistant's.
    """
    if not isinstance(messages, list):
        faults.append(wrong_type_fault(field, "a list of messages", messages))
        return False
    if not messages:
        faults.append(_fault(field, FaultCode.empty_conversation, "is empty: add messages"))
        return False
    before, roles = len(faults), []
    for index, message in enumerate(messages):
        roles.append(_check_message(message, field, index, turn, faults))
        if len(faults) >= MAX_ROW_FAULTS:
            return False
    if len(faults) == before:
        _check_order(roles, messages, field, turn, faults)
        _check_ends(roles, field, begins, ends, faults)
    return len(faults) == before or all(fault.code.is_warning for fault in faults[before:])


def wrong_type_fault(field: str, expected: str, value: Any) -> Fault:
    """Return the fault of a field whose value has the wrong type."""
    return _fault(field, FaultCode.wrong_type, f"must be {expected}, but is {type_name(value)}")


def empty_text_fault(field: str) -> Fault:
    """Return the fault of a text without a visible character."""
    return _fault(field, FaultCode.empty_text, "is empty: add text, or remove the row")


def _check_message(message: Any, field: str, index: int, turn: TurnFields, faults: list[Fault]) -> str:
    if not isinstance(message, dict):
        faults.append(wrong_type_fault(f"{field}[{index}]", f"an object with `{turn.role}`", message))
        return ""
    name = message.get(turn.role)
    role = turn.roles.get(name) if isinstance(name, str) else None
    if role is None:
        known = ", ".join(f"`{known}`" for known in turn.roles)
        problem = f"must be one of {known}, but is {quote_value(name)}"
        faults.append(_fault(f"{field}[{index}].{turn.role}", FaultCode.unknown_role, problem))
        return ""
    content = message.get(turn.content)
    # A message with a role and some text, as nearly all are, needs no further check.
    if not isinstance(content, str) or is_blank(content):
        _check_content(message, role, f"{field}[{index}].{turn.content}", content, faults)
    if len(message) > 2 and turn is OPENAI_TURN:
        _check_tool_calls(message, role, f"{field}[{index}].tool_calls", faults)
        _check_weight(message, role, f"{field}[{index}].weight", faults)
    return role


def _check_content(message: dict[str, Any], role: str, field: str, content: Any, faults: list[Fault]) -> None:
    calls_tools = role == "assistant" and bool(message.get("tool_calls"))
    if content is None and not calls_tools:
        problem = (
            "is missing or null, which is valid only in an assistant message with `tool_calls`: add its text"
        )
        faults.append(_fault(field, FaultCode.missing_field, problem))
    elif isinstance(content, str) and not calls_tools and role != "tool":
        faults.append(empty_text_fault(field))
    elif isinstance(content, list):
        _check_parts(content, field, faults)
    elif content is not None and not isinstance(content, str):
        faults.append(wrong_type_fault(field, "a string", content))


def _check_parts(parts: list[Any], field: str, faults: list[Fault]) -> None:
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            problem = "contains a part that is not text: keep only parts of the form `{type: text, text: …}`"
            faults.append(_fault(field, FaultCode.unsupported_content, problem))
            return
    if all(is_blank(part["text"]) for part in parts):
        faults.append(empty_text_fault(field))


def _check_tool_calls(message: dict[str, Any], role: str, field: str, faults: list[Fault]) -> None:
    calls = message.get("tool_calls")
    if calls is None:
        return
    if role != "assistant":
        problem = "is set in a message of another role: only an assistant message can call tools. Remove it"
        faults.append(_fault(field, FaultCode.invalid_tool_call, problem))
    elif not isinstance(calls, list) or not all(_is_tool_call(call) for call in calls):
        problem = (
            "must be a list of calls, each with `function.name` and `function.arguments`, which is an object "
            "or an object as a JSON string"
        )
        faults.append(_fault(field, FaultCode.invalid_tool_call, problem))


def _is_tool_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        return False
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            return False
    return arguments is None or isinstance(arguments, dict)


def _check_weight(message: dict[str, Any], role: str, field: str, faults: list[Fault]) -> None:
    weight = message.get("weight")
    if weight is None or (role == "assistant" and type(weight) in (int, float) and weight in (0, 1)):
        return
    faults.append(
        _fault(
            field,
            FaultCode.invalid_weight,
            "must be 0 or 1, and only in an assistant message: correct or remove it",
        )
    )


def _check_order(
    roles: list[str], messages: list[dict[str, Any]], field: str, turn: TurnFields, faults: list[Fault]
) -> None:
    previous = ""
    for index, role in enumerate(roles):
        code, problem = FaultCode.message_order, ""
        if role == "system" and index:
            problem = "is a system message after the first message: move it to the start"
        elif role == "tool" and not _may_precede_tool(previous, messages[index - 1], turn):
            problem = (
                "is a tool result without a tool call before it: add the assistant message with the call"
            )
        elif role == previous and role != "tool":
            code = FaultCode.repeated_role
            problem = f"is {role} twice in a row, which many chat templates reject: join the messages"
        if problem:
            faults.append(_fault(f"{field}[{index}].{turn.role}", code, problem))
        previous = role
        if len(faults) >= MAX_ROW_FAULTS:
            return


def _may_precede_tool(previous: str, message: dict[str, Any], turn: TurnFields) -> bool:
    if previous == "assistant":
        return turn is not OPENAI_TURN or bool(message.get("tool_calls"))
    return previous == "tool"


def _check_ends(
    roles: list[str], field: str, begins: tuple[str, ...], ends: bool, faults: list[Fault]
) -> None:
    first = next((role for role in roles if role != "system"), None)
    if first is None:
        problem = "contains only a system message: add the messages that follow it"
        faults.append(_fault(field, FaultCode.empty_conversation, problem))
    elif first not in begins and first != "tool":
        wanted = " or ".join(begins)
        problem = (
            f"must begin with {wanted}, after an optional system message, but begins with {first}: reorder it"
        )
        faults.append(_fault(field, FaultCode.message_order, problem))
    elif ends and "assistant" not in roles:
        problem = "contains no assistant message: add the completion to train on"
        faults.append(_fault(field, FaultCode.no_assistant_turn, problem))
    elif ends and roles[-1] != "assistant":
        problem = f"ends with a {roles[-1]} message: add the assistant's reply, or remove that message"
        faults.append(_fault(field, FaultCode.last_turn_not_assistant, problem))


def _fault(field: str, code: FaultCode, problem: str) -> Fault:
    return Fault(field=field, code=code, message=f"`{field}` {problem}.")
