"""Rendering of chat templates in a child process, which is killed when one exceeds its limits."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from trainers.rendering import template_program
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError

MAX_CPU_SECONDS = 2.0
# Above what the child uses before its first template, about 20 MiB.
MAX_MEMORY_BYTES = 256 * 2**20
# Twice the largest body of a request.
MAX_CHARACTERS = 16 * 2**20
# The child's own time is limited by its use of the CPU, so that a busy host fails nobody. This is for a child
# that does not run at all.
RESPONSE_TIMEOUT_SECONDS = 30.0

HINT = "Correct the template: chat_template.jinja or tokenizer_config.json in the model's folder."


class ChatTemplateError(ProgramError):
    """A chat template that cannot be used, whatever the chat."""


class TemplateTooSlow(ChatTemplateError):
    code = ErrorCode.template_too_slow

    def __init__(self) -> None:
        super().__init__(f"The chat template runs for more than {MAX_CPU_SECONDS:.0f} s.", HINT)


class TemplateTooLarge(ChatTemplateError):
    code = ErrorCode.template_too_large

    def __init__(self) -> None:
        super().__init__(
            f"The chat template needs more than {MAX_MEMORY_BYTES >> 20} MiB of memory, or renders more than "
            f"{MAX_CHARACTERS >> 20} million characters.",
            HINT,
        )


class TemplateUnsafe(ChatTemplateError):
    code = ErrorCode.template_unsafe

    def __init__(self, reason: str) -> None:
        super().__init__(f"The chat template tries to leave its sandbox: {reason}", HINT)


class TemplateInvalid(ChatTemplateError):
    code = ErrorCode.template_invalid


class Chat(NamedTuple):
    """The messages of a chat, and how its prompt ends.

    With `prompt_messages`, so many of the messages are also rendered as a prompt.
    """

    messages: Sequence[dict[str, Any]]
    tools: Sequence[dict[str, Any]] | None = None
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    prompt_messages: int | None = None


class RenderedChat(NamedTuple):
    """A chat's text and that of its prompt, or why the template rejects the chat."""

    text: str = ""
    prompt: str | None = None
    rejected: str | None = None


@dataclass(frozen=True)
class RenderedRow:
    """A row's text, or the items of a list, or why the template rejects the row."""

    text: str = ""
    items: Sequence[str] = ()
    rejected: str | None = None


class TemplateRenderer:
    """A child process that renders templates; it may be used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def render(self, template: str, chat: Chat, variables: dict[str, Any]) -> RenderedChat:
        """Render one chat. Raises ChatTemplateError."""
        return self.render_all(template, [chat], variables)[0]

    def render_all(
        self, template: str, chats: Sequence[Chat], variables: dict[str, Any]
    ) -> list[RenderedChat]:
        """Render chats, which share one limit of time; `variables` are further variables of the template.

        Raises:
            ChatTemplateError: The template exceeds a limit, is unsafe or has a syntax error.
        """
        request = {"template": template, "variables": variables, "chats": [_as_json(chat) for chat in chats]}
        return [_read_result(**found) for found in self._render(request)]

    def render_rows(
        self, template: str, rows: Sequence[dict[str, Any]], as_list: bool = False
    ) -> list[RenderedRow]:
        """Render a template with the fields of each row, within one limit of time; raises ChatTemplateError.

        With `as_list`, the text is the literal of a list.
        """
        request = {"template": template, "rows": list(rows), "as_list": as_list}
        return [RenderedRow(**found) for found in self._render(request)]

    def start(self) -> None:
        """Start the child now rather than with the first chat."""
        with self._lock:
            self._connect()

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._stop()

    def _render(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        with self._lock:
            is_new = self._process is None
            try:
                response = self._request(request)
            except TemplateTooLarge:
                if is_new:
                    raise
                # What earlier chats have left behind counts too.
                response = self._request(request)
        if "error" in response:
            raise TemplateInvalid(f"The chat template is not valid: {response['error']}", HINT)
        results: list[dict[str, Any]] = response["results"]
        unsafe = next((found["unsafe"] for found in results if "unsafe" in found), None)
        if unsafe is not None:
            raise TemplateUnsafe(unsafe)
        return results

    def _request(self, request: dict[str, Any]) -> dict[str, Any]:
        body = _encode(request)
        connection = self._connect()
        try:
            connection.sendall(len(body).to_bytes(4, "big") + body)
            size = int.from_bytes(_receive(connection, 4), "big")
            response = _decode(_receive(connection, size))
        except (TimeoutError, OSError) as error:
            raise self._failure(error) from None
        return response

    def _failure(self, error: OSError) -> ChatTemplateError:
        """Stop the child, and return the error that explains why it did not respond."""
        if isinstance(error, TimeoutError):
            self._stop()
            return TemplateTooSlow()
        assert self._process is not None
        status = self._process.wait()
        self._stop()
        if status == -signal.SIGPROF:
            return TemplateTooSlow()
        # The kernel kills a child with SIGKILL when the host's memory is full.
        if status in (template_program.EXIT_OUT_OF_MEMORY, -signal.SIGKILL):
            return TemplateTooLarge()
        return TemplateInvalid(f"The chat template ended its program with status {status}.", HINT)

    def _connect(self) -> socket.socket:
        if self._socket is not None:
            return self._socket
        connection, child_side = socket.socketpair()
        connection.settimeout(RESPONSE_TIMEOUT_SECONDS)
        limits = (MAX_MEMORY_BYTES, MAX_CPU_SECONDS, MAX_CHARACTERS)
        with child_side, contextlib.ExitStack() as on_failure:
            on_failure.callback(connection.close)
            # Isolated and without an environment: a template that leaves the sandbox finds no secret there.
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(Path(template_program.__file__)), *map(str, limits)],
                stdin=child_side.fileno(),
                stdout=child_side.fileno(),
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
            )
            on_failure.pop_all()
        self._socket = connection
        return connection

    def _stop(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._socket = self._process = None


def _read_result(
    text: str = "",
    prompt: str | None = None,
    rejected: str | None = None,
    prompt_characters: int | None = None,
) -> RenderedChat:
    return RenderedChat(text, prompt if prompt_characters is None else text[:prompt_characters], rejected)


def _encode(request: dict[str, Any]) -> bytes:
    try:
        # Rows of any file may have values of which the two libraries write different forms.
        if "chats" in request:
            return msgspec.json.encode(request)
    except (UnicodeEncodeError, TypeError, OverflowError, RecursionError):
        pass  # A lone surrogate, or a value that only `json` has a form for.
    return json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _decode(body: bytes) -> dict[str, Any]:
    try:
        response: dict[str, Any] = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        response = json.loads(body.decode("utf-8", "surrogatepass"))
    return response


def _as_json(chat: Chat) -> dict[str, Any]:
    # Messages without the keys whose value is None, as transformers drops them.
    messages = [
        {key: value for key, value in message.items() if value is not None} for message in chat.messages
    ]
    return {
        "messages": messages,
        "tools": chat.tools,
        "add_generation_prompt": chat.add_generation_prompt,
        "continue_final_message": chat.continue_final_message,
        "prompt_messages": chat.prompt_messages,
    }


def _receive(connection: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        piece = connection.recv(size - len(received))
        if not piece:
            raise ConnectionError("the child has ended")
        received += piece
    return bytes(received)
