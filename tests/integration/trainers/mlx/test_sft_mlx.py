"""Goal: SFT with MLX trains what SFT with torch trains. Method: both programs on the same rows and model.

Everything runs on MLX's CPU device, in fp32.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.integration.trainers.conftest import (
    Programs,
    events,
    kill_at_step,
    losses,
    wait_for,
)
from tests.integration.trainers.mlx.windowed_model import write_windowed_model
from tests.integration.trainers.stages import Recorder, at_checkpoint, run_stage
from trainers.configs import parse_stage
from trainers.configs.stages.sft import SftConfig
from trainers.modeling.load import ModelUnsupported, load_tokenizer
from trainers.modeling.model_files import ModelRole, is_adapter, open_model
from trainers.rendering.examples.sft import load_examples
from trainers.rendering.render import IGNORE_INDEX
from trainers.runtime import run_dir as files
from trainers.runtime.events import EventWriter

sft_mlx = pytest.importorskip("trainers.mlx.sft")
batches = pytest.importorskip("trainers.mlx.training.batches")
CheckpointUnsupported = pytest.importorskip("trainers.mlx.training.state").CheckpointUnsupported

Rows = list[dict[str, Any]]
# Turns of the assistant anywhere, one of them without loss, one that is cut off, and rows of several lengths.
CHATS: Rows = [
    {
        "messages": [
            {"role": "user", "content": f"What is {n} + {n}?"},
            {"role": "assistant", "content": f"#### {2 * n}", "weight": n % 2},
            {"role": "user", "content": "And one more?" * (1 + n % 3)},
            {"role": "assistant", "content": f"#### {2 * n + 1}" * (1 + 20 * (n % 7 == 0))},
        ]
    }
    for n in range(20)
]
STAGE: dict[str, Any] = {
    **{"stage": "sft", "batch_size": 8, "micro_batch_size": 4, "max_length": 96, "preflight": "off"},
    **{"log_every_steps": 1, "save_every_steps": 4, "learning_rate": 5e-3, "max_steps": 8},
}
LORA = {"method": "lora", "rank": 4, "alpha": 8}
FULL = {"tuning": {"method": "full"}, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def stage(starter: Path, write_rows: Callable[[Rows], str]) -> dict[str, Any]:
    return STAGE | {"base": str(starter), "dataset": write_rows(CHATS), "tuning": LORA}


def train(stage: dict[str, Any], run_dir: Path, backend: str = "mlx") -> dict[str, Any]:
    result = run_stage(stage | {"backend": backend}, run_dir)
    assert result is not None
    return result


def unpadded(micro_batch: Any) -> tuple[list[int], list[int]]:
    """Return the token ids and labels of a micro-batch, one row after the other, as torch's batches are."""
    ids, labels = (np.array(array) for array in micro_batch.inputs)
    flat_ids, flat_labels, left = [], [], micro_batch.tokens
    for row_ids, row_labels in zip(ids, labels, strict=True):
        # The last token of a row always carries loss.
        end = 1 + int(np.flatnonzero(row_labels != IGNORE_INDEX).max())
        flat_ids += row_ids[:end].tolist()
        # The first token of a row is never predicted.
        flat_labels += [IGNORE_INDEX, *row_labels[1:end].tolist()]
        left -= end
    assert left == 0
    return flat_ids, flat_labels


def test_the_same_rows_give_the_same_token_ids_masks_and_order_as_with_torch(
    stage: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    train(stage, tmp_path / "torch", backend="torch")
    expected = [
        (batch["input_ids"].flatten().tolist(), batch["labels"].flatten().tolist())
        for batch in recorder.inputs
    ]
    config = parse_stage(stage)
    assert isinstance(config, SftConfig)
    examples = load_examples(config.dataset, load_tokenizer(config.base), config.max_length)
    rows = sft_mlx.make_rows(examples)
    steps = batches.iterate_steps(config, rows.lengths, rows.make_batch, 0, 8)
    actual = [unpadded(batch) for step in steps for batch in step.micro_batches]
    assert examples.truncated
    assert actual == expected


def test_full_tuning_takes_the_same_steps_as_with_torch(stage: dict[str, Any], tmp_path: Path) -> None:
    rows = {"validation_dataset": stage["dataset"], "validate_every_steps": 4, "weight_decay": 0.1}
    stage = stage | FULL | rows | {"schedule": "cosine", "warmup_ratio": 0.3}
    results = [train(stage, tmp_path / backend, backend) for backend in ("torch", "mlx")]
    torch_log, mlx_log = (
        {(line["step"], name): value for line in events(tmp_path / backend, "metrics")
         for name, value in line["values"].items()
         if name in ("loss", "grad_norm", "learning_rate", "epoch", "tokens", "validation_loss")}
        for backend in ("torch", "mlx")
    )  # fmt: skip
    assert mlx_log == pytest.approx(torch_log, rel=2e-4)
    assert results[0]["metrics"].keys() == results[1]["metrics"].keys()
    best = [result["metrics"]["best_validation_loss"] for result in results]
    assert best[1] == pytest.approx(best[0], rel=2e-4)


def test_dora_rslora_and_a_4_bit_base_start_at_the_loss_of_the_base_and_lower_it(
    stage: dict[str, Any], tmp_path: Path
) -> None:
    # Rounding to 4 bits changes the loss of this model by less than 0.1.
    variants: dict[str, tuple[dict[str, Any], float]] = {
        "lora": ({}, 0.0),
        "dora": ({"dora": True, "rslora": True}, 1e-4),
        "4bit": ({"quantization": "4bit"}, 0.1),
    }
    for name, (tuning, tolerance) in variants.items():
        train(stage | {"tuning": LORA | tuning, "max_steps": 6}, tmp_path / name)
        found, expected = losses(tmp_path / name), losses(tmp_path / "lora")
        assert found[1] == pytest.approx(expected[1], abs=tolerance)
        assert found[6] < found[1]
        assert (tmp_path / name / "model" / "adapter_model.safetensors").is_file()


def test_the_size_of_micro_batches_and_recomputation_change_nothing(
    stage: dict[str, Any], tmp_path: Path
) -> None:
    variants = {"whole": {"micro_batch_size": 8}, "parts": {"micro_batch_size": 2},
                "recomputed": {"micro_batch_size": 8, "activation_checkpointing": True}}  # fmt: skip
    found = {}
    for name, changes in variants.items():
        train(stage | changes | {"max_steps": 4}, tmp_path / name)
        found[name] = losses(tmp_path / name)
    assert found["recomputed"] == found["whole"]
    assert found["parts"] == pytest.approx(found["whole"], rel=1e-5)


def test_a_killed_run_resumes_exactly(programs: Programs, stage: dict[str, Any], tmp_path: Path) -> None:
    stage = stage | {
        "tuning": LORA | {"dropout": 0.2},
        "backend": "mlx",
        "validation_dataset": stage["dataset"],
    }
    killed = tmp_path / "killed"
    stage = stage | {"save_every_steps": 2, "max_steps": 5}
    kill_at_step(programs, "trainers.mlx.sft", stage, killed, 3)
    train(stage, killed)
    train(stage, tmp_path / "whole")
    assert [line["exactness"] for line in events(killed, "resumed")] == ["exact"]
    assert losses(killed) == losses(tmp_path / "whole")
    weights = "adapter_model.safetensors"
    published = [(folder / "model" / weights).read_bytes() for folder in (killed, tmp_path / "whole")]
    assert published[0] == published[1]


def test_full_tuning_resumes_exactly_in_the_middle_of_an_epoch(stage: dict[str, Any], tmp_path: Path) -> None:
    stage = stage | FULL
    train(stage, tmp_path / "whole")
    at_checkpoint(tmp_path / "whole", tmp_path / "resumed", 4)
    train(stage, tmp_path / "resumed")
    found, expected = losses(tmp_path / "resumed"), losses(tmp_path / "whole")
    assert found == dict(itertools.islice(expected.items(), 4, None))
    weights = [
        (tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("resumed", "whole")
    ]
    assert weights[0] == weights[1]


def test_a_checkpoint_of_an_earlier_version_or_of_torch_is_refused_with_the_reason(
    stage: dict[str, Any], tmp_path: Path
) -> None:
    stage = stage | {"max_steps": 2}
    train(stage, tmp_path / "torch", backend="torch")
    train(stage, tmp_path / "mlx")
    for name, reason in (("torch", "another backend than MLX"), ("mlx", "an earlier version")):
        resumed = tmp_path / f"{name}-resumed"
        at_checkpoint(tmp_path / name, resumed, 2)
        if name == "mlx":
            changed = (resumed / files.CHECKPOINTS / "step-00000002").rename(resumed / "changed")
            (changed / "training" / "state.safetensors").rename(changed / "state.safetensors")
            (changed / files.MANIFEST).unlink()
            files.publish_checkpoint(resumed, 2, changed)
        with pytest.raises(CheckpointUnsupported, match=f"step-00000002 was written by {reason}") as error:
            train(stage, resumed)
        assert error.value.hint is not None and "Submit the job again" in error.value.hint


def test_training_stops_early_and_publishes_the_best_model(stage: dict[str, Any], tmp_path: Path) -> None:
    validation = {"validation_dataset": stage["dataset"], "validate_every_steps": 2}
    stop = {"early_stopping_patience": 1, "early_stopping_min_improvement": 100, "max_steps": 50}
    result = train(stage | validation | stop, tmp_path / "run")
    # The first validation is an improvement, and no later one is.
    assert result["metrics"]["steps"] == 4
    assert result["metrics"]["best_step"] in (2, 4)
    assert files.checkpoints(tmp_path / "run")[-1].step == 4


@pytest.mark.parametrize("tuning", [{"tuning": LORA | {"dora": True}}, FULL], ids=["dora", "full"])
def test_a_checkpoint_is_a_model_that_every_program_opens(
    stage: dict[str, Any], tuning: dict[str, Any], tmp_path: Path
) -> None:
    train(stage | tuning | {"max_steps": 2, "save_every_steps": 1, "keep_checkpoints": 2}, tmp_path / "run")
    first, last = (tmp_path / "run" / line.path for line in files.checkpoints(tmp_path / "run"))
    is_full = "learning_rate" in tuning
    role, weights = (ModelRole.base, "model") if is_full else (ModelRole.adapter, "adapter_model")
    published = load_file(tmp_path / "run" / "model" / f"{weights}.safetensors")
    for folder, is_last in ((first, False), (last, True)):
        assert is_adapter(folder) is not is_full
        opened = open_model(folder, role, [], tmp_path / "views")
        # The state of the training is not among the files that a loader sees, or that are published.
        assert [path.name for path in opened.glob("*.safetensors")] == [f"{weights}.safetensors"]
        assert [path.name for path in folder.glob("*.safetensors")] == [f"{weights}.safetensors"]
        found = load_file(opened / f"{weights}.safetensors")
        same = [np.array_equal(found[name], published[name]) for name in published]
        assert found.keys() == published.keys() and all(same) is is_last
        for name in ("tokenizer.json", "chat_template.jinja"):
            assert (opened / name).read_bytes() == (Path(stage["base"]) / name).read_bytes()


def test_a_run_that_is_told_to_stop_saves_and_resumes_exactly(
    programs: Programs, stage: dict[str, Any], tmp_path: Path
) -> None:
    stage = stage | {"tuning": LORA | {"dropout": 0.2}, "backend": "mlx", "max_steps": 24}
    stage |= {"save_every_steps": 1000, "log_every_steps": 3}
    stopped = tmp_path / "stopped"
    process = programs.start("trainers.mlx.sft", stage, stopped, held_at=6)
    wait_for(lambda: len(losses(stopped)) >= 1, process)
    process.terminate()
    _, err = process.communicate(timeout=240)
    assert process.returncode == 75, err
    [saved] = files.checkpoints(stopped)
    assert 3 <= saved.step < 24 and not (stopped / files.RESULT).exists()
    train(stage, stopped)
    train(stage, tmp_path / "whole")
    assert [(line["step"], line["exactness"]) for line in events(stopped, "resumed")] == [
        (saved.step, "exact")
    ]
    weights = "adapter_model.safetensors"
    published = [(folder / "model" / weights).read_bytes() for folder in (stopped, tmp_path / "whole")]
    assert published[0] == published[1]


def test_rows_beyond_a_window_that_mlx_ignores_are_refused_and_shorter_ones_trained(
    stage: dict[str, Any], starter: Path, tmp_path: Path
) -> None:
    base = write_windowed_model(starter, tmp_path / "base", 64)
    stage = stage | {"base": str(base), "max_steps": 2, "batch_size": 4}
    config = parse_stage(stage | {"backend": "mlx"})
    assert isinstance(config, SftConfig)
    for work in (lambda: train(stage, tmp_path / "run"), lambda: sft_mlx.plan(config)):
        with pytest.raises(ModelUnsupported, match=r"The longest row has 96 tokens.* at most 64"):
            work()
    train(stage | {"max_length": 64}, tmp_path / "shorter")


def test_a_4_bit_run_never_holds_all_original_weights_of_its_base(
    stage: dict[str, Any], starter: Path, tmp_path: Path
) -> None:
    import mlx.core as mx
    from transformers import LlamaConfig, LlamaForCausalLM

    from trainers.mlx.network import load_trained_network
    from trainers.mlx.save import write_model
    from trainers.mlx.training.quantization_gap import AffineGapRecorder

    tokenizer = load_tokenizer(str(starter))
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 16, "vocab_size": 1200}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
    base = tmp_path / "base"
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    dense_bytes = 4 * model.num_parameters()
    tuning = {"quantization": "4bit", "rank": 4}
    config = parse_stage(stage | {"base": str(base), "backend": "mlx", "tuning": tuning})
    assert isinstance(config, SftConfig)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    network, adapter = load_trained_network(config, EventWriter(None), 64)
    assert mx.get_peak_memory() - before < 0.5 * dense_bytes
    write_model(network, adapter, config, tokenizer, tmp_path / "model")
    mx.clear_cache()
    mx.reset_peak_memory()
    AffineGapRecorder(network, config, tokenizer).record_checkpoint(tmp_path / "model")
    assert mx.get_peak_memory() - before < 0.6 * dense_bytes
