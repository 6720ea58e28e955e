"""Checks of a conversation: its messages one by one, then their order."""

import json
from typing import Any, Final, NamedTuple

from trainers.data.faults import Fault, FaultCode, quote_value, type_name
from trainers.data.formats import MESSAGE_ROLES, SHAREGPT_ROLES

# The first fault refuses a row; more than this many are noise, and a wrong row may hold a million.
MAX_ROW_FAULTS: Final = 20


class TurnFields(NamedTuple):
    """How a format spells the role and the text of a turn."""

    role: str
    content: str
    roles: dict[str, str]


OPENAI_TURN: Final = TurnFields("role", "content", MESSAGE_ROLES)
SHAREGPT_TURN: Final = TurnFields("from", "value", SHAREGPT_ROLES)


# Nearly every conversation is a system turn at most, then user and assistant in turn.
_PLAIN_NEXT: Final = {
    "": ("user", "system"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
}


def is_plain_conversation(messages: Any) -> bool:
    """True when nothing can be wrong with a conversation, at a third of the cost of `check_conversation`.

    False says nothing: it is for that function to judge.
    """
    if type(messages) is not list:
        return False
    previous = ""
    try:
        for message in messages:
            content, role = message["content"], message["role"]
            if len(message) != 2 or type(content) is not str or not content or content.isspace():
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
    """Adds what is wrong with a list of messages; True if nothing but warnings was added.

    `begins` are the roles that may come first, after a system turn; with `ends`, an assistant turn must be
    the last.
    """
    if not isinstance(messages, list):
        faults.append(wrong_type_fault(field, "a list of messages", messages))
        return False
    if not messages:
        faults.append(_fault(field, FaultCode.empty_conversation, "is empty: write its turns"))
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
    """The fault of a field that holds another type than it must."""
    return _fault(field, FaultCode.wrong_type, f"must be {expected}, but it is {type_name(value)}")


def empty_text_fault(field: str) -> Fault:
    """The fault of a text without a character that is not white space."""
    return _fault(field, FaultCode.empty_text, "is empty: write its text, or remove the row")


def _check_message(message: Any, field: str, index: int, turn: TurnFields, faults: list[Fault]) -> str:
    if not isinstance(message, dict):
        faults.append(wrong_type_fault(f"{field}[{index}]", f"an object with `{turn.role}`", message))
        return ""
    spelled = message.get(turn.role)
    role = turn.roles.get(spelled) if isinstance(spelled, str) else None
    if role is None:
        known = ", ".join(f"`{name}`" for name in turn.roles)
        problem = f"must be one of {known}, but it is {quote_value(spelled)}"
        faults.append(_fault(f"{field}[{index}].{turn.role}", FaultCode.unknown_role, problem))
        return ""
    content = message.get(turn.content)
    # A message of two fields with some text has nothing else to check, and nearly all are such.
    if not isinstance(content, str) or not content or content.isspace():
        _check_content(message, role, f"{field}[{index}].{turn.content}", content, faults)
    if len(message) > 2 and turn is OPENAI_TURN:
        _check_tool_calls(message, role, f"{field}[{index}].tool_calls", faults)
        _check_weight(message, role, f"{field}[{index}].weight", faults)
    return role


def _check_content(message: dict[str, Any], role: str, field: str, content: Any, faults: list[Fault]) -> None:
    calls_tools = role == "assistant" and bool(message.get("tool_calls"))
    if content is None and not calls_tools:
        problem = (
            "is missing or null, which only an assistant turn with `tool_calls` may have: write its text"
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
            problem = "holds a part which is no text: keep only parts such as `{type: text, text: …}`"
            faults.append(_fault(field, FaultCode.unsupported_content, problem))
            return
    if not any(part["text"].strip() for part in parts):
        faults.append(empty_text_fault(field))


def _check_tool_calls(message: dict[str, Any], role: str, field: str, faults: list[Fault]) -> None:
    calls = message.get("tool_calls")
    if calls is None:
        return
    if role != "assistant":
        problem = "stands in a turn of another role: only an assistant turn calls tools"
        faults.append(_fault(field, FaultCode.invalid_tool_call, problem))
    elif not isinstance(calls, list) or not all(_is_tool_call(call) for call in calls):
        problem = (
            "must be a list of calls, each with `function.name` and with `function.arguments`, "
            "which is an object or the JSON of one"
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
    faults.append(_fault(field, FaultCode.invalid_weight, "must be 0 or 1, in an assistant turn: correct it"))


def _check_order(
    roles: list[str], messages: list[dict[str, Any]], field: str, turn: TurnFields, faults: list[Fault]
) -> None:
    previous = ""
    for index, role in enumerate(roles):
        code, problem = FaultCode.message_order, ""
        if role == "system" and index:
            problem = "is a system turn, which may only come first: move it there"
        elif role == "tool" and not _may_precede_tool(previous, messages[index - 1], turn):
            problem = "is a tool's answer without a call before it: add the assistant turn that calls it"
        elif role == previous and role != "tool":
            code = FaultCode.repeated_role
            problem = f"is {role} for the second time in a row, which many templates refuse: join the turns"
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
        problem = "holds only a system turn: add the turns that follow it"
        faults.append(_fault(field, FaultCode.empty_conversation, problem))
    elif first not in begins and first != "tool":
        wanted = " or ".join(begins)
        problem = (
            f"must begin with {wanted}, after a system turn at most, but begins with {first}: reorder it"
        )
        faults.append(_fault(field, FaultCode.message_order, problem))
    elif ends and "assistant" not in roles:
        problem = "holds no assistant turn: add the answer that the model is to learn"
        faults.append(_fault(field, FaultCode.no_assistant_turn, problem))
    elif ends and roles[-1] != "assistant":
        problem = f"ends with a {roles[-1]} turn: end it with the assistant's answer, or cut it there"
        faults.append(_fault(field, FaultCode.last_turn_not_assistant, problem))


def _fault(field: str, code: FaultCode, problem: str) -> Fault:
    return Fault(field=field, code=code, message=f"`{field}` {problem}.")
