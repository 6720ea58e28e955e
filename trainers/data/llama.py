r"""Conversations as text in the chat template of Llama 2, the format of data sets such as Guanaco.

    {"text": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n2+2? [/INST] 4 </s><s>[INST] 3+3? [/INST] 6 </s>"}

Parsing tolerates differences in white space, a missing `<s>` and a missing last `</s>`. Formatted text is
parsed back exactly.
"""

from typing import Any, Final

START, END = "<s>", "</s>"
INST, INST_END = "[INST]", "[/INST]"
SYSTEM, SYSTEM_END = "<<SYS>>", "<</SYS>>"
MARKERS: Final = (START, END, INST, INST_END, SYSTEM, SYSTEM_END)


def is_llama_text(text: Any) -> bool:
    """Return whether a text begins like Llama's template, unlike plain text."""
    return isinstance(text, str) and text.lstrip().removeprefix(START).lstrip().startswith(INST)


def parse_llama(text: str) -> list[dict[str, Any]]:
    """Return the messages of a text; raises ValueError naming a marker that is missing or misplaced."""
    before, *pieces = text.strip().split(INST)
    if before.strip() not in ("", START) or not pieces:
        raise ValueError(f"`text` must begin with `{START}{INST}`, but begins with {text[:40]!r}.")
    messages: list[dict[str, Any]] = []
    for number, piece in enumerate(pieces, start=1):
        request, marker, completion = piece.partition(INST_END)
        if not marker or INST_END in completion:
            raise ValueError(f"`text` must contain one `{INST_END}` after `{INST}` number {number}.")
        system, question = _split_system(_strip_space(request))
        if system is not None:
            messages.append({"role": "system", "content": system})
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": _parse_completion(completion, number)})
    return messages


def format_llama(messages: list[dict[str, Any]]) -> str:
    """Return the text of alternating user and assistant messages, after an optional system message.

    Raises ValueError naming the message that the template cannot represent, or that contains a marker of it.
    """
    system = [message["content"] for message in messages[:1] if message["role"] == "system"]
    turns = messages[len(system) :]
    roles = [message["role"] for message in turns]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        names = ", ".join(roles)
        raise ValueError(f"`text` needs user and assistant in alternation, but the roles are {names}.")
    for index, message in enumerate(messages):
        if found := [marker for marker in MARKERS if marker in message["content"]]:
            raise ValueError(f"The text of messages[{index}] contains the template's marker `{found[0]}`.")
    requests = [message["content"] for message in turns[::2]]
    if system:
        requests[0] = f"{SYSTEM}\n{system[0]}\n{SYSTEM_END}\n\n{requests[0]}"
    completions = [message["content"] for message in turns[1::2]]
    return "".join(
        f"{START}{INST} {request} {INST_END} {completion} {END}"
        for request, completion in zip(requests, completions, strict=True)
    )


def _split_system(request: str) -> tuple[str | None, str]:
    if not request.lstrip().startswith(SYSTEM):
        return None, request
    system, marker, question = request.lstrip().removeprefix(SYSTEM).partition(SYSTEM_END)
    if not marker:
        raise ValueError(f"`text` contains `{SYSTEM}` without `{SYSTEM_END}`.")
    return system.removeprefix("\n").removesuffix("\n"), question.removeprefix("\n").removeprefix("\n")


def _parse_completion(text: str, number: int) -> str:
    if END not in text:
        if START in text:
            raise ValueError(
                f"`text` must contain `{END}` after completion number {number}, before `{START}`."
            )
        return _strip_space(text)
    completion, _, rest = text.partition(END)
    if rest.strip() not in ("", START):
        raise ValueError(
            f"`text` contains words between the `{END}` of completion number {number} and `{INST}`."
        )
    return _strip_space(completion)


def _strip_space(text: str) -> str:
    # The template puts one space on each side.
    return text.removeprefix(" ").removesuffix(" ")
