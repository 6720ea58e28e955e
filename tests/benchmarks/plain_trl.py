"""SFT by TRL with nothing set but what the task needs: what a person would try first.

python -m tests.benchmarks.plain_trl --base models/larger --dataset rows.jsonl --out plain --steps 25
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer


class Tell(TrainerCallback):
    """Prints the time and the tokens seen after each step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        print("told", time.time(), state.num_input_tokens_seen, flush=True)


def main() -> None:
    """Train with eight rows in a forward pass, TRL's default, and two of them to a step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", required=True)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--keep-activations", action="store_true", help="TRL computes them again by default")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.dataset.read_text().splitlines()]
    kept = {"activation_checkpointing": False} if options.keep_activations else {}
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
            **kept,
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
        callbacks=[Tell()],
    )
    trainer.train()


if __name__ == "__main__":
    main()
