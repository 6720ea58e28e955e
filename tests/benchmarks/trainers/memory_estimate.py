"""The error of preflight's memory estimate, compared with the memory that training uses.

Models with random weights are trained for two steps in a process of their own, and the peak is its VmHWM. On
a GPU it would be the allocator's peak.

    python -m tests.benchmarks.trainers.memory_estimate
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

from tests.benchmarks.report import print_table
from tests.e2e.platform import ROOT
from trainers.configs import parse_stage
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems
from trainers.preflight.memory.estimate import estimate_memory

MIB = 1 << 20
# Hidden size, layers, minimum vocabulary: 3, 13, 57 and 9 million parameters.
SIZES = {"3M": (256, 3, 0), "13M": (512, 4, 0), "57M": (768, 8, 0), "9M, 131,072 words": (64, 2, 1 << 17)}
LORA, FULL = {"method": "lora", "rank": 16}, {"method": "full"}
CASES: list[tuple[str, dict[str, Any], int, int, bool]] = [
    ("3M", FULL, 64, 1, False),
    ("13M", LORA, 16, 1, False),
    ("13M", FULL, 32, 1, False),
    ("13M", FULL, 32, 1, True),
    ("57M", LORA, 8, 4, False),
    ("57M", FULL, 8, 4, False),
    ("57M", FULL, 8, 4, True),
    ("9M, 131,072 words", LORA, 16, 1, False),
]


def main() -> None:
    """Estimate and measure every case, and print both values with the error."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    lines = []
    with tempfile.TemporaryDirectory(prefix="tunesmith-benchmark-") as name:
        folder = Path(name)
        starter = [sys.executable, "-m", "trainers.starter", "--out", str(folder / "starter"), "--steps", "1"]
        subprocess.run(starter, cwd=ROOT, check=True, capture_output=True)
        for size, shape in SIZES.items():
            _make(folder / "starter", folder / size, *shape)
        for number, (size, tuning, rows, times, checkpointing) in enumerate(CASES):
            stage = _stage(folder, size, tuning, rows, times, checkpointing)
            peak = _peak(stage, folder / f"run-{number}")
            tokens = _longest(folder, stage)
            result = estimate_memory(parse_stage(stage), [], tokens)  # type: ignore[arg-type]
            assert result is not None, "Llama's layers are known"
            estimate = result["hosts"][0]["needed_bytes"]
            kind = tuning["method"] + (", checkpointed" if checkpointing else "")
            values = [rows, tokens, estimate // MIB, peak // MIB]
            lines.append([size, kind, *map(str, values), f"{estimate / peak - 1:+.0%}"])
            print(lines[-1], result["parts"], file=sys.stderr)
    header = ["parameters", "tuning", "rows", "tokens per row", "estimate MiB", "peak MiB", "error"]
    print_table("One micro-batch in fp32 on a CPU, libraries included", header, lines)


def _make(starter: Path, out: Path, hidden: int, layers: int, words: int) -> None:
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(starter)
    config = LlamaConfig(
        vocab_size=max(words, len(tokenizer)),
        tie_word_embeddings=words > 0,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(out)
    tokenizer.save_pretrained(out)


def _stage(
    folder: Path, size: str, tuning: dict[str, Any], rows: int, times: int, checkpointing: bool
) -> dict[str, Any]:
    dataset = folder / f"{rows}-{times}.jsonl"
    made = generate_problems(2 * rows, ProblemSplit.train, seed=1)
    lines = [json.dumps(row | {"question": " ".join([row["question"]] * 3 * times)}) for row in made]
    dataset.write_text("\n".join(lines) + "\n")
    return {
        "stage": "sft",
        "base": str(folder / size),
        "dataset": str(dataset),
        "tuning": tuning,
        "batch_size": rows,
        "micro_batch_size": rows,
        "max_steps": 2,
        "max_length": 2048,
        "activation_checkpointing": checkpointing,
        "save_every_steps": 100_000,
        "preflight": "off",
        # The estimate assumes that all rows of a micro-batch are as long as the longest.
        "attention": "sdpa",
    }


def _longest(folder: Path, stage: dict[str, Any]) -> int:
    from trainers.modeling.load import load_tokenizer
    from trainers.rendering.examples.sft import load_examples

    rows = load_examples(stage["dataset"], load_tokenizer(stage["base"]), stage["max_length"])
    return max(len(example.input_ids) for example in rows.examples)


def _peak(stage: dict[str, Any], run_dir: Path) -> int:
    """Return the peak memory of the training process in bytes."""
    run_dir.mkdir()
    (run_dir / "stage.json").write_text(json.dumps(stage))
    arguments = ["--config", str(run_dir / "stage.json"), "--run-dir", str(run_dir)]
    child = subprocess.Popen(
        [sys.executable, "-m", "trainers.sft", *arguments], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    peak = 0
    while child.poll() is None:
        try:
            lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
        except OSError:
            continue
        marks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
        peak = max([peak, *marks])
        time.sleep(0.02)
    assert child.returncode == 0
    return peak


if __name__ == "__main__":
    main()
