"""A conversation with a model in the terminal: streamed answers, a history, commands that begin with `/`."""

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ANSWER_SECONDS = 600.0
SETTINGS = {"temperature": float, "top_p": float, "max_tokens": int, "seed": int}
HELP = """\
/help                 this list
/system TEXT          another system message, and a new conversation; without TEXT none
/set NAME VALUE       temperature, top_p, max_tokens or seed; without VALUE the engine's own
/show                 the settings and the conversation so far
/undo                 take the last question and answer back
/retry                answer the last question again
/clear                a new conversation
/save FILE            append the conversation to FILE as a row of `messages`
/model NAME           talk to another served name; without NAME list them
/quit                 end; so does Ctrl-D. Ctrl-C ends an answer."""


@dataclass
class ChatSession:
    """The state of a conversation."""

    address: str
    model: str
    system_prompt: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    turns: list[dict[str, str]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, str]]:
        """What the model is sent."""
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return [*system, *self.turns]

    def run(self) -> None:
        """Read lines and answer them until the end of input or `/quit`."""
        print(f"{self.model} is ready. /help lists the commands.")
        while (line := _read_line()) is not None and line != "/quit":
            try:
                self.take(line)
            except ValueError as wrong:
                print(wrong)
            except OSError as fault:
                print(f"The engine gave no answer: {fault}")

    def take(self, line: str) -> None:
        """A command, or something to be answered; raises ValueError with a sentence for a wrong command."""
        if not line:
            return
        if not line.startswith("/"):
            self._ask(line)
            return
        name, _, rest = line[1:].partition(" ")
        if name not in COMMANDS:
            raise ValueError(f"There is no command /{name}; /help lists them.")
        getattr(self, f"_{name}")(rest.strip())

    def _ask(self, question: str) -> None:
        self.turns.append({"role": "user", "content": question})
        answer = ""
        try:
            for piece in self._stream():
                answer += piece
                sys.stdout.write(piece)
                sys.stdout.flush()
        except KeyboardInterrupt:
            answer = answer or "…"
        finally:
            print()
            if answer:
                self.turns.append({"role": "assistant", "content": answer})
            else:
                self.turns.pop()

    def _stream(self) -> Iterator[str]:
        """The pieces of an answer as they come; raises ValueError with the engine's own words."""
        body = {"model": self.model, "messages": self.messages, "stream": True, **self.settings}
        request = urllib.request.Request(  # noqa: S310 — the engine that we have started
            f"{self.address}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:  # noqa: S310
                yield from filter(None, map(_piece, answer))
        except urllib.error.HTTPError as error:
            with error:
                raise ValueError(json.loads(error.read())["error"]["message"]) from error

    def _help(self, rest: str) -> None:
        print(HELP)

    def _system(self, text: str) -> None:
        self.system_prompt, self.turns = text or None, []
        print("A new conversation begins.")

    def _set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        if name not in SETTINGS:
            raise ValueError(f"There is no setting {name!r}; choose one of: {', '.join(SETTINGS)}.")
        self.settings.pop(name, None)
        if value:
            try:
                self.settings[name] = SETTINGS[name](value)
            except ValueError:
                raise ValueError(f"{value!r} is no {SETTINGS[name].__name__}.") from None
        print(f"{name} is {self.settings.get(name, 'the engine’s own')}.")

    def _show(self, rest: str) -> None:
        print(json.dumps({"model": self.model, **self.settings}, ensure_ascii=False))
        for message in self.messages:
            print(f"{message['role']}: {message['content']}")

    def _undo(self, rest: str) -> None:
        if not self.turns:
            raise ValueError("There is nothing to take back.")
        self.turns = self.turns[:-2]

    def _retry(self, rest: str) -> None:
        if not self.turns:
            raise ValueError("There is nothing to answer again.")
        question = self.turns[-2]["content"]
        self.turns = self.turns[:-2]
        self._ask(question)

    def _clear(self, rest: str) -> None:
        self.turns = []
        print("A new conversation begins.")

    def _save(self, path: str) -> None:
        if not path or not self.turns:
            raise ValueError("Name a file, once there is a conversation: /save talk.jsonl")
        with Path(path).expanduser().open("a", encoding="utf-8") as file:
            file.write(json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n")
        print(f"Added to {path}.")

    def _model(self, name: str) -> None:
        with urllib.request.urlopen(f"{self.address}/v1/models", timeout=ANSWER_SECONDS) as answer:  # noqa: S310
            served = [model["id"] for model in json.loads(answer.read())["data"]]
        if name not in served:
            raise ValueError(f"Served are: {', '.join(served)}.")
        self.model = name
        print(f"{name} answers from now on.")


COMMANDS = {line.split()[0][1:] for line in HELP.splitlines()} - {"quit"}


def _read_line() -> str | None:
    """What the person typed; None at the end of input."""
    try:
        return input("> ").strip()
    except EOFError:
        return None
    except KeyboardInterrupt:
        print()
        return ""


def _piece(line: bytes) -> str:
    """The text in one line of a stream; raises ValueError for an error event."""
    data = line.removeprefix(b"data: ").strip()
    if not data.startswith(b"{"):
        return ""
    event = json.loads(data)
    if "error" in event:
        raise ValueError(event["error"]["message"])
    return "".join(choice["delta"].get("content") or "" for choice in event["choices"])
