"""SFT by TRL with nothing set but what the task needs: what a person would try first.

python -m tests.benchmarks.plain_trl --base models/larger --dataset rows.jsonl --out plain --steps 25
"""

import argparse
import json
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

KINDS = {
    "defaults": {},
    # TRL computes activations again by default.
    "kept": {"activation_checkpointing": False},
    # TRL refuses to lay rows end to end where it might have to cut them; none is as long as that here.
    "padding-free": {"activation_checkpointing": False, "padding_free": True, "max_length": None},
}


def main() -> None:
    """Train with eight rows in a forward pass, TRL's default, and two of them to a step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", required=True)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--kind", choices=KINDS, default="defaults")
    parser.add_argument("--tuning", choices=["lora", "full"], default="full")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.dataset.read_text().splitlines()]
    # The adapter is that of our stage, so that both do the same work.
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model=options.base,
        args=SFTConfig(
            output_dir=options.out,
            max_steps=options.steps,
            gradient_accumulation_steps=2,
            # Counting is not a default, but what is measured by.
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
