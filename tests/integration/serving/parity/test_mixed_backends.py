"""Goal: an adapter moves between MLX and PEFT without loss. Method: the whole chain, by the real programs.

SFT with MLX → DPO with torch → DPO with MLX → merged, each trained on the result of the one before, and each
served by hf, mlx and vLLM, where the parity check compares it with transformers and PEFT. With `-s`, pytest
prints the rows of docs/benchmarks/adapters-across-backends.md.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from serving.engines import find_engine
from serving.parity.__main__ import run_comparison
from serving.parity.compare import TOLERANCES
from tests.conftest import OFFLINE, ROOT
from tests.integration.serving.conftest import Server, serving
from tests.integration.serving.real_vllm import NEEDS_VLLM, vllm
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems
from trainers.runtime import run_dir as files

pytest.importorskip("mlx_lm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

# The starter's heads are too small for vLLM on a CPU.
WIDE_STARTER = """
import sys
from transformers import LlamaConfig
from trainers import starter
starter.LlamaConfig = lambda **values: LlamaConfig(
    **values | {"num_attention_heads": 2, "num_key_value_heads": 2}
)
starter.program(sys.argv[1:], standalone_mode=False)
"""
TUNING = {"method": "lora", "rank": 8, "alpha": 16}
COMMON: dict[str, Any] = {"batch_size": 16, "log_every_steps": 10, "preflight": "off", "queue": "cpu"}
# Of an engine on a machine that other work has slowed down.
START_SECONDS = 900.0
ADAPTERS = ("sft-mlx", "dpo-torch", "dpo-mlx", "sft-mlx-4bit")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `base`, and a run directory for each step."""
    folder = tmp_path_factory.mktemp("chain")
    arguments = ["--out", str(folder / "base"), "--steps", "150"]
    run([sys.executable, "-c", WIDE_STARTER, *arguments])
    problems = [dict(row) for row in generate_problems(160, ProblemSplit.train, seed=1)]
    pairs = [
        {"prompt": row["question"], "chosen": row["answer"], "rejected": f"{row['answer'][:-1]}?"}
        for row in problems
    ]
    data = {"rows": problems, "pairs": pairs}
    for name, rows in data.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sft = {"dataset": str(folder / "rows.jsonl"), "learning_rate": 3e-3, "max_steps": 40, "backend": "mlx"}
    dpo = {"dataset": str(folder / "pairs.jsonl"), "learning_rate": 1e-3, "max_steps": 20}
    train(folder, "sft-mlx", "trainers.mlx.sft", {"stage": "sft", **sft}, None)
    train(folder, "dpo-torch", "trainers.dpo", {"stage": "dpo", **dpo, "backend": "torch"}, "sft-mlx")
    train(folder, "dpo-mlx", "trainers.mlx.dpo", {"stage": "dpo", **dpo, "backend": "mlx"}, "dpo-torch")
    quantized = {"tuning": TUNING | {"quantization": "4bit"}}
    train(folder, "sft-mlx-4bit", "trainers.mlx.sft", {"stage": "sft", **sft, **quantized}, None)
    merge = {"stage": "merge", "model": reference(folder, "dpo-mlx")}
    start(folder, "merged", "trainers.merge", merge)
    return folder


def train(folder: Path, name: str, module: str, values: dict[str, Any], parent: str | None) -> None:
    base: Any = str(folder / "base") if parent is None else reference(folder, parent)
    start(folder, name, module, {"base": base, "tuning": TUNING} | COMMON | values)


def reference(folder: Path, step: str) -> dict[str, str]:
    return {"base": str(folder / "base"), "adapter": str(folder / step / "model")}


def start(folder: Path, name: str, module: str, values: dict[str, Any]) -> None:
    run_dir = folder / name
    run_dir.mkdir()
    (run_dir / "config.json").write_text(json.dumps(values))
    run([sys.executable, "-m", module, "--config", str(run_dir / "config.json"), "--run-dir", str(run_dir)])
    assert files.read_result(run_dir) is not None


def run(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, env=os.environ | OFFLINE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@contextmanager
def served(chain: Path, kind: str, model: Path, *adapters: str) -> Iterator[Server]:
    """Serve a model as `base`, with the adapters of these steps."""
    options = [part for step in adapters for part in ("--adapter", f"{step}={chain / step / 'model'}")]
    if kind == "vllm":
        # The helper serves `base` of a folder.
        shown = chain / f"vllm-{model.parent.name}"
        shown.mkdir(exist_ok=True)
        if not (shown / "base").exists():
            (shown / "base").symlink_to(model)
        with vllm(shown, *options, "--max-model-len", "256") as server:
            yield server
        return
    arguments = ["--model", str(model), "--served-name", "base", *options]
    with serving(chain / f"{kind}.log", f"serving.engines.{kind}", *arguments) as server:
        yield server.wait_until_ready(START_SECONDS)


@pytest.mark.parametrize("kind", ["hf", "mlx", pytest.param("vllm", marks=NEEDS_VLLM)])
def test_each_step_is_served_as_it_was_trained(chain: Path, kind: str) -> None:
    engine, base = find_engine(kind), str(chain / "base")
    reports: dict[str, dict[str, Any]] = {}
    with served(chain, kind, chain / "base", *ADAPTERS) as server:
        for step in ADAPTERS:
            adapter = str(chain / step / "model")
            reports[step] = run_comparison(engine, server.url, step, base, adapter, "float32")
    # The merged weights are compared with the adapter from which they were merged.
    with served(chain, kind, chain / "merged" / "model") as server:
        adapter = str(chain / "dpo-mlx" / "model")
        reports["merged"] = run_comparison(engine, server.url, "base", base, adapter, "float32")
    for step, report in reports.items():
        print(
            f"| {kind} | {step} | {report['mean_difference']:.1e} | {report['max_difference']:.1e} | "
            f"{report['adapter_effect']:.3f} | {report['adapter_scale']:.4f} | "
            f"{report['equal_completions']} of {report['chats']} |",
            report["quantization"] or "",
        )
        assert report["passed"], report["difference"]
        assert report["max_difference"] < TOLERANCES["float32"].max
        assert report["adapter_effect"] > 0.05
