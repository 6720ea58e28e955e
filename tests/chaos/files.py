"""The files that the driver and the stand-in program write: a model, an adapter, rows, and an interpreter."""

import json
import struct
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = "tests.chaos.program"


def write_base(folder: Path) -> None:
    """Write a model that only looks like one: its weights are a single number."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    )
    _write_safetensors(folder / "model.safetensors")


def write_adapter(folder: Path, base: object) -> None:
    """Write an adapter of a base."""
    folder.mkdir(parents=True, exist_ok=True)
    name = base if isinstance(base, str) else "base"
    config = {"peft_type": "LORA", "r": 1, "base_model_name_or_path": name, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    _write_safetensors(folder / "adapter_model.safetensors")


def write_rows() -> bytes:
    """Return the rows of a small dataset."""
    chat = [{"role": "user", "content": "One and one?"}, {"role": "assistant", "content": "Two."}]
    return json.dumps({"messages": chat}).encode() + b"\n"


def write_interpreter(path: Path, ledger: Path) -> None:
    """Write an interpreter that starts the stand-in program in place of `trainers.sft` or its launcher."""
    path.write_text(
        "#!/bin/sh\n"
        f'case " $* " in *" -m trainers.sft "*) ;; *) exec "{sys.executable}" "$@" ;; esac\n'
        f'PYTHONPATH="{ROOT}" exec "{sys.executable}" -m {PROGRAM} "{ledger}" "$@"\n'
    )
    path.chmod(0o755)


def _write_safetensors(path: Path) -> None:
    header = json.dumps({"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\0\0")
