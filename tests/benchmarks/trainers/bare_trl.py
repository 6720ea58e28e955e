"""A script that uses only TRL, for the same training as our `sft` stage.

python -m tests.benchmarks.trainers.bare_trl --base starter --dataset train.jsonl --out bare --steps 100
"""

import argparse
import json
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer


def main() -> None:
    """Train; TRL prints its logs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", required=True)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument(
        "--save-steps", type=int, help="steps between two checkpoints; no checkpoints by default"
    )
    options = parser.parse_args()
    SFTTrainer(
        model=options.base,
        args=SFTConfig(
            output_dir=options.out,
            max_steps=options.steps,
            per_device_train_batch_size=8,
            # The dataset is written in the order in which our stage samples its rows.
            train_sampling_strategy="sequential",
            learning_rate=2e-4,
            warmup_steps=0.03,
            max_length=1024,
            logging_steps=10,
            save_strategy="steps" if options.save_steps else "no",
            save_steps=options.save_steps or 1,
            save_total_limit=2,
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            report_to="none",
        ),
        train_dataset=Dataset.from_list(
            [_conversation(json.loads(line)) for line in options.dataset.read_text().splitlines()]
        ),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    ).train()


def _conversation(row: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    return {
        "prompt": [{"role": "user", "content": row["question"]}],
        "completion": [{"role": "assistant", "content": row["answer"]}],
    }


if __name__ == "__main__":
    main()
