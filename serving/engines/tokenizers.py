"""Which tokenizer, and so which chat template, an engine that has only one of them must be given."""

import json
from pathlib import Path
from typing import Any

from serving.engines.engine import EngineConfig

CONFIG = "tokenizer_config.json"
VOCABULARIES = ("tokenizer.json", "tokenizer.model")
# What else the file holds says where it came from, not what becomes of a text.
ROLES = ("chat_template", "eos_token", "bos_token", "add_bos_token", "add_eos_token")


class TokenizersDiffer(ValueError):
    """Two adapters were trained with different tokenizers or templates; one engine cannot serve both."""


def shared_tokenizer(serve: EngineConfig) -> str:
    """The folder of the tokenizer that the adapters were trained with, "" if it is the base's own.

    Raises TokenizersDiffer.
    """
    base_form = _form(Path(serve.model))
    adapters = serve.adapters | ({"template_from": serve.template_from} if serve.template_from else {})
    forms = {name: _form(Path(path)) or base_form for name, path in adapters.items()}
    first = next(iter(forms), None)
    if first is None or all(form == base_form for form in forms.values()):
        return ""
    for name, form in forms.items():
        if form != forms[first]:
            raise TokenizersDiffer(
                f"The adapters {first!r} and {name!r} have different tokenizers or chat templates, and this "
                "engine renders all of its models with one; serve them by two engines, or with hf."
            )
    return adapters[first]


def _form(folder: Path) -> dict[str, Any]:
    """What a folder's tokenizer makes of texts and chats; empty if the folder has none."""
    if not (folder / CONFIG).is_file():
        return {}
    config = json.loads((folder / CONFIG).read_text())
    form = {role: config[role] for role in ROLES if role in config}
    template = folder / "chat_template.jinja"
    if template.is_file():
        form["chat_template"] = template.read_text()
    vocabularies = [(folder / name).read_bytes() for name in VOCABULARIES if (folder / name).is_file()]
    return {**form, "vocabularies": vocabularies}
