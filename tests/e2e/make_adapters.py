"""Create random LoRA adapters of a base; each gives other completions.

python -m tests.e2e.make_adapters BASE FOLDER NAME NAME…
"""

import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


def main(base: str, folder: Path, names: list[str]) -> None:
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        lora = LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora).save_pretrained(folder / name)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
