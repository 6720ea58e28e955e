"""Proof that a chat template is fit for use, before anything renders a dataset or a request with it."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainers.rendering.template_renderer import (
    HINT,
    Chat,
    ChatTemplateError,
    TemplateInvalid,
    TemplateRenderer,
)

CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")
# A template of a folder is larger than a megabyte only by mistake or with intent.
MAX_TEMPLATE_BYTES = 2**20

_TOOL = {
    "type": "function",
    "function": {
        "name": "find",
        "description": "Find a word.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
    },
}
_CALL = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": {"word": "한글"}}}
_TEXT = "A line with 한글, 😀, {{ braces }}, <think>thoughts</think>\n"


def prove_template(template: str | Mapping[str, str], variables: Mapping[str, Any]) -> None:
    """Render sample chats with a template, or with each of several templates by their names.

    `variables` are the special tokens. The samples are long, have many turns, tools and odd characters.

    Raises:
        ChatTemplateError: A template exceeds a limit, is unsafe, has a syntax error, or rejects every sample.
    """
    renderer = TemplateRenderer()
    try:
        for source in [template] if isinstance(template, str) else template.values():
            rendered = renderer.render_all(source, sample_chats(), dict(variables))
            if all(chat.rejected is not None for chat in rendered):
                raise TemplateInvalid(f"The chat template rejects every chat: {rendered[0].rejected}", HINT)
    finally:
        renderer.close()


def prove_folder(folder: Path) -> None:
    """Prove the templates in a model's folder, if it has any; raises ChatTemplateError naming the folder."""
    with locate_errors(str(folder)):
        if templates := read_templates(folder):
            prove_template(templates, _read_special_tokens(folder))


@contextmanager
def locate_errors(source: str) -> Iterator[None]:
    """Name the model in the errors of its template."""
    try:
        yield
    except ChatTemplateError as error:
        error.message = f"{source}: {error.message}"
        error.args = (error.message,)
        raise


def read_templates(folder: Path) -> dict[str, str]:
    """Return the templates in a folder by their names; those in files precede those in the config.

    Raises:
        TemplateInvalid: A file is too large or cannot be read.
    """
    configured = _read_config(folder).get("chat_template") or {}
    templates: dict[str, str] = {"default": configured} if isinstance(configured, str) else {}
    if isinstance(configured, list):
        templates = {str(entry["name"]): str(entry["template"]) for entry in configured}
    files = [file for file in list_template_files(folder) if file.suffix == ".jinja"]
    return templates | {"default" if file.parent == folder else file.stem: _read_text(file) for file in files}


def list_template_files(folder: Path) -> list[Path]:
    """Return the files from which a folder's templates are read."""
    files = [folder / CONFIG, folder / "chat_template.jinja"]
    files += sorted((folder / "additional_chat_templates").glob("*.jinja"))
    return [file for file in files if file.is_file()]


def sample_chats() -> list[Chat]:
    """Return chats of every shape that templates distinguish."""
    question, answer = _turn("user", _TEXT), _turn("assistant", _TEXT)
    system = _turn("system", "Be brief.")
    call = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
    result = {"role": "tool", "content": "found", "tool_call_id": "call_1", "name": "find"}
    return [
        Chat([question], add_generation_prompt=True),
        Chat([question, answer]),
        Chat([system, question, answer]),
        Chat([_turn("user", "")], add_generation_prompt=True),
        Chat([question, answer] * 32 + [question], add_generation_prompt=True),
        Chat([_turn("user", _TEXT * 1024)], add_generation_prompt=True),
        Chat([system, question, call, result], tools=[_TOOL], add_generation_prompt=True),
    ]


def _turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _read_special_tokens(folder: Path) -> dict[str, str]:
    config = _read_config(folder)
    tokens = {name: config.get(name) for name in SPECIAL_TOKENS}
    contents = {
        name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items()
    }
    return {name: content for name, content in contents.items() if isinstance(content, str)}


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise TemplateInvalid(f"{file} is not valid JSON: {error}.", HINT) from error
    return config if isinstance(config, dict) else {}


def _read_text(file: Path) -> str:
    if file.stat().st_size > MAX_TEMPLATE_BYTES:
        raise TemplateInvalid(f"{file} has more than {MAX_TEMPLATE_BYTES:,} bytes.", HINT)
    try:
        return file.read_text(encoding="utf-8")
    except ValueError as error:
        raise TemplateInvalid(f"{file} is not valid UTF-8: {error}.", HINT) from error
