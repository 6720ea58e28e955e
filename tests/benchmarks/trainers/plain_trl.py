"""SFT with TRL's defaults, as a user would first try it.

python -m tests.benchmarks.trainers.plain_trl --base models/larger --dataset rows.jsonl --out plain --steps 25
"""

import argparse
import json
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

KINDS: dict[str, dict[str, Any]] = {
    "defaults": {},
    # TRL recomputes activations by default (activation checkpointing).
    "kept": {"activation_checkpointing": False},
    # TRL refuses padding_free with a max_length; no row here exceeds the default of 1024.
    "padding-free": {"activation_checkpointing": False, "padding_free": True, "max_length": None},
}


def main() -> None:
    """Train with eight rows per forward pass, TRL's default, and two passes per optimizer step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", required=True)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--kind", choices=KINDS, default="defaults")
    parser.add_argument("--tuning", choices=["lora", "full"], default="full")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.dataset.read_text().splitlines()]
    # The same adapter as our stage, so that both do the same work.
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model=options.base,
        args=SFTConfig(
            output_dir=options.out,
            max_steps=options.steps,
            gradient_accumulation_steps=2,
            # Not a default, but the measurement needs the counts.
            include_num_input_tokens_seen="non_padding",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            **KINDS[options.kind],
        ),
        train_dataset=Dataset.from_list(
            [
                {
                    "prompt": [{"role": "user", "content": row["question"]}],
                    "completion": [{"role": "assistant", "content": row["answer"]}],
                }
                for row in rows
            ]
        ),
        peft_config=adapter if options.tuning == "lora" else None,
    )
    trainer.train()


if __name__ == "__main__":
    main()
