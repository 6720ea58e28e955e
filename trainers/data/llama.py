"""Conversations as the text of Llama 2's template, the shape in which sets such as Guanaco are published.

    {"text": "<s>[INST] <<SYS>>\\nBe brief.\\n<</SYS>>\\n\\n2+2? [/INST] 4 </s><s>[INST] 3+3? [/INST] 6 </s>"}

Reading is lenient in white space and in a missing `<s>` or last `</s>`; what is written is read back exactly.
"""

from typing import Any, Final

START, END = "<s>", "</s>"
ASK, ASKED = "[INST]", "[/INST]"
SYSTEM, SYSTEM_END = "<<SYS>>", "<</SYS>>"
MARKS: Final = (START, END, ASK, ASKED, SYSTEM, SYSTEM_END)


def is_llama_text(text: Any) -> bool:
    """Tells a text in Llama's template from any other, so that plain text is not taken for a conversation."""
    return isinstance(text, str) and text.lstrip().removeprefix(START).lstrip().startswith(ASK)


def parse_llama(text: str) -> list[dict[str, Any]]:
    """The messages of a text; ValueError names the mark that is missing or in the wrong place."""
    before, *pieces = text.strip().split(ASK)
    if before.strip() not in ("", START) or not pieces:
        raise ValueError(f"`text` must begin with `{START}{ASK}`, but it begins with {text[:40]!r}.")
    messages: list[dict[str, Any]] = []
    for number, piece in enumerate(pieces, start=1):
        asked, mark, answer = piece.partition(ASKED)
        if not mark or ASKED in answer:
            raise ValueError(f"`text` needs one `{ASKED}` after its `{ASK}` number {number}.")
        system, question = _split_system(_inner(asked))
        if system is not None:
            messages.append({"role": "system", "content": system})
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": _answer(answer, number)})
    return messages


def format_llama(messages: list[dict[str, Any]]) -> str:
    """The text of user and assistant turns in alternation, after a system turn at most.

    ValueError names the turn which the template has no place for, or whose text holds one of its marks.
    """
    system = [message["content"] for message in messages[:1] if message["role"] == "system"]
    turns = messages[len(system) :]
    roles = [message["role"] for message in turns]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError(f"`text` holds user and assistant in turn, but the roles are {', '.join(roles)}.")
    for index, message in enumerate(messages):
        if found := [mark for mark in MARKS if mark in message["content"]]:
            raise ValueError(f"The text of messages[{index}] holds the mark `{found[0]}` of the template.")
    asked = [message["content"] for message in turns[::2]]
    if system:
        asked[0] = f"{SYSTEM}\n{system[0]}\n{SYSTEM_END}\n\n{asked[0]}"
    answers = [message["content"] for message in turns[1::2]]
    return "".join(
        f"{START}{ASK} {question} {ASKED} {answer} {END}"
        for question, answer in zip(asked, answers, strict=True)
    )


def _split_system(asked: str) -> tuple[str | None, str]:
    if not asked.lstrip().startswith(SYSTEM):
        return None, asked
    system, mark, question = asked.lstrip().removeprefix(SYSTEM).partition(SYSTEM_END)
    if not mark:
        raise ValueError(f"`text` opens `{SYSTEM}` without `{SYSTEM_END}`.")
    return system.removeprefix("\n").removesuffix("\n"), question.removeprefix("\n").removeprefix("\n")


def _answer(text: str, number: int) -> str:
    if END not in text:
        if START in text:
            raise ValueError(f"`text` needs `{END}` after the answer number {number}, before `{START}`.")
        return _inner(text)
    answer, _, rest = text.partition(END)
    if rest.strip() not in ("", START):
        raise ValueError(f"`text` holds words between the `{END}` of answer number {number} and `{ASK}`.")
    return _inner(answer)


def _inner(text: str) -> str:
    """Without the one space that the template puts on each side."""
    return text.removeprefix(" ").removesuffix(" ")
