"""Put random LoRA adapters of a base into the registry, as training runs would.

    python -m tests.e2e.make_adapters BASE NAME NAME…

Each answers otherwise than the base and than the others; prints their ids as a JSON object by name.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from app.artifacts import get_store
from app.db import transaction
from app.tables import Model, ModelKind
from app.tables.base import new_id


def main(base: str, names: list[str]) -> None:
    made = {}
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        lora = LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False)
        with tempfile.TemporaryDirectory() as folder:
            get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora).save_pretrained(folder)
            made[name] = register(name, base, Path(folder))
    print(json.dumps(made))


def register(name: str, base: str, folder: Path) -> str:
    """Publish a folder and make its row; answers the id."""
    model_id = new_id("model")
    published = get_store().publish_folder(folder, f"models/{model_id}")
    with transaction() as session:
        session.add(
            Model(
                id=model_id,
                name=name,
                kind=ModelKind.adapter,
                base=base,
                artifact=published.key,
                sha256=published.sha256,
                size_bytes=published.size_bytes,
                template_sha256="0" * 64,
            )
        )
    return model_id


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
