"""Measure the host's memory while several ranks load a base that FSDP2 shards.

Each case runs `trainers.sft` on CPU processes with gloo, from a random base whose files are in bf16. The
memory is the sum over the ranks of their proportional set size (PSS), in which a page that several ranks
share counts once, less that sum before the base is loaded. `before` means that each rank converts the base
for itself. Until the weights are `sharded`, the memory includes the shards, which a GPU would hold.

    python -m tests.benchmarks.trainers.loading_memory models/starter
"""

import argparse
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed
from trl import SFTTrainer

from tests.integration.trainers.distributed.on_cpu import shard_on_cpu
from trainers.configs import parse_stage
from trainers.runtime import run_dir as files
from trainers.runtime.launch_command import build_command
from trainers.training import policy
from trainers.training.schedule import ScheduleMixin

SAMPLE_SECONDS = 0.02
MIB = 1 << 20


def create_base(tokenizer_from: str, folder: Path) -> int:
    """Save a random model in bf16, and return the bytes of its weights in fp32."""
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return int(sum(parameter.numel() for parameter in model.parameters()) * 4)


def run_stage(base: Path, folder: Path, tuning: str, ranks: int, case: str) -> None:
    """Train one step with several ranks, whose samples are written to the folder."""
    folder.mkdir()
    rows = folder / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"prompt": f"{n} + 1 =", "completion": str(n)}) for n in range(64)))
    values: dict[str, Any] = {
        "stage": "sft",
        "base": str(base),
        "dataset": str(rows),
        "tuning": {"method": tuning},
        "devices": ranks,
        "parallelism": "fsdp2",
        "batch_size": ranks,
        "max_steps": 1,
        "activation_checkpointing": False,
        "preflight": "off",
    }
    config = folder / "config.json"
    config.write_text(json.dumps(values))
    command = build_command(sys.executable, parse_stage(values), config, folder)
    command.insert(command.index("trainers.sft"), __spec__.name)
    environment = os.environ | {"CASE": case, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert files.read_result(folder) is not None, done.stdout + done.stderr


def highest_sum(folder: Path, end: str) -> int:
    """Return the highest sum of memory until a moment of the last rank, less that before loading."""
    ranks = [json.loads(path.read_text()) for path in sorted(folder.glob("*-memory.json"))]
    started, ended = max(rank["started"] for rank in ranks), max(rank[end] for rank in ranks)

    def total(moment: float) -> int:
        return sum(max(sample for sample in rank["samples"] if sample[0] <= moment)[1] for rank in ranks)

    moments = [moment for rank in ranks for moment, _ in rank["samples"] if started <= moment <= ended]
    return int(max(map(total, moments)) - sum(rank["samples"][0][1] for rank in ranks))


def sample_rank() -> None:
    """Run the program of a rank, and sample its memory until the base is loaded and sharded."""
    module, sys.argv = sys.argv[1], [sys.argv[1], *sys.argv[2:]]
    report: dict[str, Any] = {"samples": []}
    is_done = threading.Event()
    load, train, schedule = policy.load_policy, SFTTrainer.train, ScheduleMixin.create_scheduler

    def sample() -> None:
        while not is_done.wait(SAMPLE_SECONDS):
            add_sample()

    def add_sample() -> float:
        moment = time.time()
        report["samples"].append((moment, read_pss()))
        return moment

    def load_policy(*arguments: Any) -> Any:
        report["started"] = add_sample()
        threading.Thread(target=sample, daemon=True).start()
        return load(*arguments)

    def mark_loaded(self: Any, *arguments: Any, **options: Any) -> Any:
        report["loaded"] = add_sample()
        return train(self, *arguments, **options)

    def mark_sharded(self: Any, *arguments: Any, **options: Any) -> Any:
        is_done.set()
        report["sharded"] = add_sample()
        path = Path(sys.argv[sys.argv.index("--run-dir") + 1]) / f"{os.environ['RANK']}-memory.json"
        path.write_text(json.dumps(report))
        return schedule(self, *arguments, **options)

    policy.load_policy = load_policy  # type: ignore[assignment]
    # The Trainer creates the schedule when the weights are sharded.
    SFTTrainer.train, ScheduleMixin.create_scheduler = mark_loaded, mark_sharded  # type: ignore[method-assign]
    if os.environ["CASE"] == "before":
        policy.is_stored = lambda *_: True  # type: ignore[attr-defined]
    shard_on_cpu()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def read_pss() -> int:
    """Return the proportional set size of this process in bytes."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def main() -> None:
    """Measure each number of ranks with each kind of tuning."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tokenizer_from", help="a model folder, for its tokenizer")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--tuning", nargs="+", default=["full", "lora"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary) / "base"
        n_bytes = create_base(options.tokenizer_from, base)
        print(f"base: {n_bytes / MIB:.0f} MiB in fp32")
        for tuning in options.tuning:
            for ranks in options.ranks:
                folders = {case: Path(temporary) / f"{tuning}-{ranks}-{case}" for case in ("before", "after")}
                for case, folder in folders.items():
                    run_stage(base, folder, tuning, ranks, case)
                for end in ("loaded", "sharded"):
                    before, after = (highest_sum(folder, end) / n_bytes for folder in folders.values())
                    print(
                        f"{tuning}, {ranks} ranks, until {end}: {before:.2f} × the base before, "
                        f"{after:.2f} × after; ratio {before / after:.2f}",
                        flush=True,
                    )


if __name__ == "__main__":
    sample_rank() if "CASE" in os.environ else main()
