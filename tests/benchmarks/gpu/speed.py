"""Cases that measure tokens per second: ours, and TRL's defaults on the same rows in the same execution.

Tokens are those of rows, never of padding. The bars are those of the best results known for one H100;
that of the 8B model is NeMo AutoModel's published one.
"""

import time
from typing import Any, Final

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig, SFTTrainer

from tests.benchmarks.gpu.cases import Bench, Case
from tests.benchmarks.gpu.training_run import WARM_UP_STEPS, add_mfu, reset_memory, run_stage

BAR_8B: Final = {"tokens_per_second": 12_473, "mfu": 0.406, "goal_tokens_per_second": 15_000}
BAR_SMALL: Final = {"tokens_per_second": 53_900.0}
STEPS: Final = 7


def list_speed_cases() -> list[Case]:
    """Return the cases, the largest model first: it is what a GPU is bought for."""
    return [
        Case("lora 8b, rows of 4096", _train_8b, expected_seconds=150, bar=BAR_8B),
        Case("lora 8b, short rows packed", _train_8b_packed, expected_seconds=60),
        Case(
            "lora 8b, rows of 4096, compiled",
            lambda bench: _train_8b(bench, {"compile": True}),
            expected_seconds=200,
            bar=BAR_8B,
        ),
        Case(
            "lora 8b, rows of 4096, liger",
            lambda bench: _train_8b(bench, {"kernels": "liger"}),
            ("trainers", "liger"),
            expected_seconds=150,
            bar=BAR_8B,
        ),
        Case("lora 0.6b", lambda bench: _train_small(bench, {}), bar=BAR_SMALL),
        Case(
            "lora 0.6b, compiled",
            lambda bench: _train_small(bench, {"compile": True}),
            expected_seconds=60,
            bar=BAR_SMALL,
        ),
        Case("full 0.6b", lambda bench: _train_small(bench, {"tuning": {"method": "full"}})),
        Case("lora 0.6b, rows padded", lambda bench: _train_small(bench, {"attention": "sdpa"})),
        Case("lora 0.6b by TRL's defaults", _train_with_trl),
        Case("qlora 8b", _train_8b_quantized, ("trainers", "nf4"), expected_seconds=60),
    ]


def _train_8b(bench: Bench, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train on rows of exactly 4096 tokens, two at once; activations are kept if they fit."""
    length = bench.tokens(4096)
    rows = bench.rows("long", 64, (5000, 5000))
    return _run(bench, "8b", rows, length, {"batch_size": 4} | (changes or {}), 2)


def _train_8b_packed(bench: Bench) -> dict[str, Any]:
    short = bench.rows("short", 400, (20, 400))
    return _run(bench, "8b", short, bench.tokens(4096), {"packing": True, "batch_size": 4}, 2)


def _train_8b_quantized(bench: Bench) -> dict[str, Any]:
    tuning = {"method": "lora", "rank": 32, "alpha": 64, "quantization": "nf4"}
    length = bench.tokens(2048)
    return _run(
        bench, "8b", bench.rows("long", 64, (5000, 5000)), length, {"tuning": tuning, "batch_size": 4}, 4
    )


def _train_small(bench: Bench, changes: dict[str, Any]) -> dict[str, Any]:
    rows = bench.rows("middle", 1600, (20, 900))
    return _run(bench, "0.6b", rows, bench.tokens(1024), {"batch_size": 64} | changes, 16)


def _run(
    bench: Bench, size: str, rows: str, length: int, changes: dict[str, Any], micro_batch_size: int
) -> dict[str, Any]:
    values = {
        "stage": "sft",
        "base": bench.model(size),
        "dataset": rows,
        "max_length": length,
        "max_steps": STEPS,
        "micro_batch_size": micro_batch_size,
        "tuning": {"method": "lora", "rank": 32, "alpha": 64},
        **changes,
    }
    measured = run_stage(values, bench.folder / "run", length)
    return add_mfu(measured, measured["parameters"], measured["is_lora"], bench.device)


class StepTimes(TrainerCallback):  # type: ignore[misc]  # transformers has no types.
    """The time and the tokens after each step of TRL's trainer."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait for the GPU, and read both."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.steps.append((time.perf_counter(), float(state.num_input_tokens_seen)))


def _train_with_trl(bench: Bench) -> dict[str, Any]:
    """Train on the rows of `lora 0.6b` with TRL's defaults, except for what the comparison needs."""
    rows = load_dataset("json", data_files=bench.rows("middle", 1600, (20, 900)), split="train")
    is_cpu = bench.device.type == "cpu"
    times = StepTimes()
    reset_memory()
    trainer = SFTTrainer(
        model=bench.model("0.6b"),
        args=SFTConfig(
            output_dir=str(bench.folder / "trl"),
            max_steps=STEPS,
            gradient_accumulation_steps=8,
            include_num_input_tokens_seen="non_padding",
            save_strategy="no",
            report_to="none",
            use_cpu=is_cpu,
            bf16=not is_cpu,
            disable_tqdm=True,
        ),
        train_dataset=rows.map(_to_messages, remove_columns=rows.column_names),
        peft_config=LoraConfig(r=32, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[times],
    )
    trainer.train()
    (start, before), (end, after) = times.steps[WARM_UP_STEPS], times.steps[-1]
    return {
        "tokens_per_second": round((after - before) / (end - start), 1),
        "seconds_per_step": round((end - start) / (len(times.steps) - 1 - WARM_UP_STEPS), 4),
        "peak_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    }


def _to_messages(row: dict[str, str]) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": row["question"]}],
        "completion": [{"role": "assistant", "content": row["answer"]}],
    }
