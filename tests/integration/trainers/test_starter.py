"""The starter model: complete, the same after loading, and able to learn in under a minute."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, GenerationConfig

from serving.engines import EngineConfig, find_engine
from serving.engines.child_engine import run_engine
from tests.integration.trainers.conftest import Programs
from tests.services import free_port
from trainers.configs import EngineKind
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems
from trainers.modeling.load import load_tokenizer
from trainers.runtime import run_dir as files


def test_each_number_up_to_99_is_one_token_after_loading(starter: Path) -> None:
    tokenizer = load_tokenizer(str(starter))
    assert all(len(tokenizer(f" {n}")["input_ids"]) == 1 for n in range(100))
    assert tokenizer.decode(tokenizer("안녕 4 + 4 = 8.\n#### 8")["input_ids"]) == "안녕 4 + 4 = 8.\n#### 8"


def test_config_template_and_generation_agree_on_the_end(starter: Path) -> None:
    tokenizer = load_tokenizer(str(starter))
    config = AutoConfig.from_pretrained(starter)
    generation = GenerationConfig.from_pretrained(starter)
    assert tokenizer.decode([config.eos_token_id]) == tokenizer.eos_token == "<|im_end|>"
    assert (generation.eos_token_id, generation.pad_token_id) == (config.eos_token_id, config.pad_token_id)
    encoded = tokenizer.apply_chat_template(
        [{"role": "user", "content": "2?"}, {"role": "assistant", "content": "#### 2"}],
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    marked = [i for i, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(marked) == "#### 2<|im_end|>"


def test_starter_leaves_only_what_a_model_needs(starter: Path) -> None:
    assert sorted(path.name for path in starter.parent.iterdir()) == ["starter"]
    assert sorted(path.name for path in starter.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    weights = json.loads((starter / "config.json").read_text())
    assert (weights["model_type"], "auto_map" in weights) == ("llama", False)


def test_the_progress_of_the_training_is_in_a_file(starter: Path) -> None:
    written = json.loads(starter.parent.with_name("starter-progress.json").read_text())
    assert written == {"step": 30, "total_steps": 30, "remaining_seconds": 0}


@pytest.mark.slow
def test_fine_tuning_lifts_a_whole_starter_above_60_percent(
    programs: Programs, write_rows: Callable[[list[dict[str, Any]]], str], tmp_path: Path
) -> None:
    base = tmp_path / "starter"
    process = programs.popen([sys.executable, "-m", "trainers.starter", "--out", str(base)])
    _, err = process.communicate()
    assert process.returncode == 0, err
    train = {
        "stage": "sft",
        "base": str(base),
        "dataset": write_rows([dict(row) for row in generate_problems(1000, ProblemSplit.train, seed=1)]),
        "max_steps": 120,
        "batch_size": 32,
        "micro_batch_size": 32,
        "learning_rate": 2e-3,
    }
    assert programs.run("trainers.sft", train, tmp_path / "sft")[0] == 0
    adapter = str(tmp_path / "sft" / "model")
    score = {
        "stage": "evaluate",
        "model": {"base": str(base), "adapter": adapter},
        "baseline": str(base),
        "dataset": write_rows([dict(row) for row in generate_problems(240, ProblemSplit.held_out, seed=1)]),
        "max_new_tokens": 40,
    }
    engine = find_engine(EngineKind.hf, [])
    serving = EngineConfig(str(base), "base", "127.0.0.1", free_port(), {"tuned": adapter})
    with run_engine(engine, serving, tmp_path / "engine.log") as url:
        names = {"model": "tuned", "baseline": "base"}
        score["engines"] = {role: {"url": url, "model": name} for role, name in names.items()}
        assert programs.run("trainers.evaluate", score, tmp_path / "score")[0] == 0
    result = files.read_result(tmp_path / "score")
    assert result is not None
    tuned, base = (model["scores"][0] for model in result["models"])
    assert base["value"] < 0.45
    assert tuned["value"] > 0.6
    assert tuned["interval_95"][0] > base["interval_95"][1]
