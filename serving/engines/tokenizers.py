"""The tokenizer, and so the chat template, of an engine that uses one for all of its models."""

import json
from pathlib import Path
from typing import Any

from serving.engines.engine import EngineConfig
from serving.engines.structured.calls.families import UnknownFamily, find_call_syntax
from trainers.configs.engines import ToolCallParser

CONFIG = "tokenizer_config.json"
VOCABULARIES = ("tokenizer.json", "tokenizer.model")
# The other keys of the file describe its origin and do not change how a text is tokenized.
RELEVANT_KEYS = ("chat_template", "eos_token", "bos_token", "add_bos_token", "add_eos_token")


class TokenizersDiffer(ValueError):
    """Two adapters with different tokenizers or templates, which one engine cannot serve together."""


def shared_tokenizer(config: EngineConfig) -> str:
    """Return the folder of the tokenizer that the adapters were trained with, or "" for the base's own.

    Raises:
        TokenizersDiffer: The adapters have different tokenizers or templates.
    """
    base_contents = _contents(Path(config.model))
    adapters = config.adapters | ({"template_from": config.template_from} if config.template_from else {})
    contents = {name: _contents(Path(path)) or base_contents for name, path in adapters.items()}
    first = next(iter(contents), None)
    if first is None or all(found == base_contents for found in contents.values()):
        return ""
    for name, found in contents.items():
        if found != contents[first]:
            raise TokenizersDiffer(
                f"The adapters {first!r} and {name!r} have different tokenizers or chat templates, and this "
                "engine renders all of its models with one. Serve them with two engines, or with hf."
            )
    return adapters[first]


def find_tool_call_parser(config: EngineConfig) -> ToolCallParser | None:
    """Return the family whose calls the engine's chat template shows; None for an unknown one or none."""
    contents = _contents(Path(shared_tokenizer(config) or config.model))
    template = contents.get("chat_template")
    if isinstance(template, list):
        # Several templates, each with a name.
        templates = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = templates.get("tool_use", templates.get("default"))
    try:
        return find_call_syntax(template, None).family if isinstance(template, str) else None
    except UnknownFamily:
        return None


def _contents(folder: Path) -> dict[str, Any]:
    """Return everything in a folder that determines tokenization; empty if it has no tokenizer."""
    if not (folder / CONFIG).is_file():
        return {}
    config = json.loads((folder / CONFIG).read_text())
    contents = {key: config[key] for key in RELEVANT_KEYS if key in config}
    template = folder / "chat_template.jinja"
    if template.is_file():
        contents["chat_template"] = template.read_text()
    vocabularies = [(folder / name).read_bytes() for name in VOCABULARIES if (folder / name).is_file()]
    return {**contents, "vocabularies": vocabularies}
