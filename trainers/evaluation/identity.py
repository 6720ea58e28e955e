"""Hashes that identify an evaluation, its files and its models."""

import hashlib
import json
from pathlib import Path
from typing import Any

from trainers.configs.stages.evaluate import EvaluateConfig
from trainers.rendering.render import dataset_path

WEIGHTS = "*.safetensors"


def identify(config: EvaluateConfig) -> str:
    """Return the hash of everything on which a response depends, whatever the folders on this host."""
    content: dict[str, Any] = {
        "dataset": hash_file(dataset_path(config.dataset)),
        "sampling": [config.temperature, config.top_p, config.max_new_tokens, config.seed],
        "engine": [config.engine, config.options.model_dump(mode="json")],
        "models": {
            role: config.origins[role].facts if role in config.origins else _dump(model)
            for role, model in config.models.items()
        },
    }
    if options := {"tools": config.tools, **config.chat_options} if config.tools else config.chat_options:
        # Evaluations of earlier versions have none.
        content["options"] = options
    return hash_json(content)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def hash_weights(folder: Path) -> str:
    """Return a hash of the weights in a model's folder."""
    return hash_json({file.name: hash_file(file) for file in sorted(folder.glob(WEIGHTS))})


def _dump(model: Any) -> Any:
    return model if isinstance(model, str) else model.model_dump(mode="json")
