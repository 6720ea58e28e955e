"""A chat with a model in the terminal: streamed completions, a history, and commands that begin with `/`."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai

RESPONSE_TIMEOUT_SECONDS = 600.0
SETTINGS = {"temperature": float, "top_p": float, "max_tokens": int, "seed": int}
TYPE_NAMES = {float: "a number", int: "an integer"}
HELP = """\
/help                 show this list
/system TEXT          start a new conversation with another system message; without TEXT, with none
/set NAME VALUE       set temperature, top_p, max_tokens or seed; without VALUE, use the engine's default
/show                 show the settings and the conversation
/undo                 remove the last question and its completion
/retry                ask the last question again
/clear                start a new conversation
/save FILE            append the conversation to FILE as a row of `messages`
/model NAME           continue with another served model; without NAME, list them
/quit                 exit, like Ctrl-D. Ctrl-C stops a completion."""


@dataclass
class ChatSession:
    """A conversation with a model, and the settings of its completions."""

    address: str
    model: str
    system_prompt: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    turns: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Proxies of the environment are ignored: the engine listens on loopback.
        self.client = openai.OpenAI(
            base_url=f"{self.address}/v1",
            api_key="none",
            max_retries=0,
            timeout=RESPONSE_TIMEOUT_SECONDS,
            http_client=openai.DefaultHttpxClient(trust_env=False),
        )

    @property
    def messages(self) -> list[dict[str, str]]:
        """The messages that are sent to the model."""
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return [*system, *self.turns]

    def run(self) -> None:
        """Read lines and respond to them until the end of input or `/quit`."""
        print(f"{self.model} is ready. /help lists the commands.")
        with self.client:
            while (line := _read_line()) is not None and line != "/quit":
                try:
                    self.handle(line)
                except ValueError as error:
                    print(error)
                except openai.APIConnectionError as error:
                    print(f"The engine did not respond: {error.__cause__ or error}")

    def handle(self, line: str) -> None:
        """Execute a command or complete a question. Raises ValueError for a wrong command or request."""
        if not line:
            return
        if not line.startswith("/"):
            self._ask(line)
            return
        name, _, rest = line[1:].partition(" ")
        if name not in COMMANDS:
            raise ValueError(f"Unknown command /{name}; /help lists the commands.")
        try:
            getattr(self, f"_{name}")(rest.strip())
        except openai.APIStatusError as error:
            raise ValueError(_error_message(error)) from error

    def _ask(self, question: str) -> None:
        self.turns.append({"role": "user", "content": question})
        completion = ""
        try:
            for text in self._stream():
                completion += text
                sys.stdout.write(text)
                sys.stdout.flush()
        except KeyboardInterrupt:
            completion = completion or "…"
        finally:
            print()
            if completion:
                self.turns.append({"role": "assistant", "content": completion})
            else:
                self.turns.pop()

    def _stream(self) -> Iterator[str]:
        """Yield the text of a completion as it arrives. Raises ValueError with the engine's error message."""
        messages: Any = self.messages
        try:
            with self.client.chat.completions.create(
                model=self.model, messages=messages, stream=True, **self.settings
            ) as chunks:
                for chunk in chunks:
                    yield "".join(choice.delta.content or "" for choice in chunk.choices)
        except openai.APIConnectionError:
            raise
        except openai.APIError as error:
            raise ValueError(_error_message(error)) from error

    def _help(self, rest: str) -> None:
        print(HELP)

    def _system(self, text: str) -> None:
        self.system_prompt, self.turns = text or None, []
        print("A new conversation begins.")

    def _set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        if name not in SETTINGS:
            raise ValueError(f"Unknown setting {name!r}; choose one of: {', '.join(SETTINGS)}.")
        self.settings.pop(name, None)
        if value:
            try:
                self.settings[name] = SETTINGS[name](value)
            except ValueError:
                raise ValueError(f"{name} is {value!r}, but must be {TYPE_NAMES[SETTINGS[name]]}.") from None
        print(f"{name} is {self.settings.get(name, 'the engine’s default')}.")

    def _show(self, rest: str) -> None:
        print(json.dumps({"model": self.model, **self.settings}, ensure_ascii=False))
        for message in self.messages:
            print(f"{message['role']}: {message['content']}")

    def _undo(self, rest: str) -> None:
        if not self.turns:
            raise ValueError("The conversation is empty.")
        self.turns = self.turns[:-2]

    def _retry(self, rest: str) -> None:
        if not self.turns:
            raise ValueError("The conversation is empty.")
        question = self.turns[-2]["content"]
        self.turns = self.turns[:-2]
        self._ask(question)

    def _clear(self, rest: str) -> None:
        self.turns = []
        print("A new conversation begins.")

    def _save(self, path: str) -> None:
        if not path:
            raise ValueError("Name a file: /save chat.jsonl")
        if not self.turns:
            raise ValueError("The conversation is empty.")
        with Path(path).expanduser().open("a", encoding="utf-8") as file:
            file.write(json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n")
        print(f"Added to {path}.")

    def _model(self, name: str) -> None:
        served = [model.id for model in self.client.models.list()]
        if name not in served:
            raise ValueError(f"Served models: {', '.join(served)}.")
        self.model = name
        print(f"The model is now {name}.")


COMMANDS = {line.split()[0][1:] for line in HELP.splitlines()} - {"quit"}


def _read_line() -> str | None:
    """Read a line; return None at the end of input, and an empty line after Ctrl-C."""
    try:
        return input("> ").strip()
    except EOFError:
        return None
    except KeyboardInterrupt:
        print()
        return ""


def _error_message(error: openai.APIError) -> str:
    """Return the engine's message, without the status and body that the SDK adds."""
    return str(error.body["message"]) if isinstance(error.body, dict) else error.message
