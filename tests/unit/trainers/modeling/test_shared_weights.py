"""Goal: the weights that ranks share are those of the model, and one copy."""

import errno
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.integration.trainers.distributed.on_cpu import is_mapped
from trainers.modeling import shared_weights
from trainers.modeling.shared_weights import is_stored, share_weights

SIZES = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}


@pytest.fixture
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_attention_heads=2, tie_word_embeddings=True))


def test_shared_weights_are_mapped_and_otherwise_those_of_the_model(
    model: LlamaForCausalLM, tmp_path: Path
) -> None:
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frozen = model.model.norm.weight.requires_grad_(False)
    tokens = torch.arange(8).unsqueeze(0)
    logits = model(tokens).logits
    shared = share_weights(lambda: model, lambda: model, tmp_path)
    assert all(map(is_mapped, shared.parameters())) and not list(tmp_path.iterdir())
    assert torch.equal(shared(tokens).logits, logits)
    assert shared.state_dict().keys() == expected.keys()
    assert shared.lm_head.weight is shared.model.embed_tokens.weight
    assert shared.model.norm.weight is not frozen and not shared.model.norm.weight.requires_grad


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, True), (torch.float32, False)])
def test_a_base_is_shared_without_writing_it_only_if_its_files_have_its_dtype(
    model: LlamaForCausalLM, dtype: torch.dtype, expected: bool, tmp_path: Path
) -> None:
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert is_stored(tmp_path, loaded) == expected == all(map(is_mapped, loaded.parameters()))


def test_a_write_to_shared_weights_reaches_no_other_rank(model: LlamaForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    first, second = (LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32) for _ in range(2))
    weight = second.model.norm.weight.clone()
    with torch.no_grad():
        first.model.norm.weight.zero_()
    assert torch.equal(second.model.norm.weight, weight)


def run_ranks(load: Callable[..., LlamaForCausalLM], folder: Path) -> list[bool]:
    """Share weights in two processes, and return whether each has tied weights and no empty one."""
    # Forked, as torch is imported already.
    fork = multiprocessing.get_context("fork")
    results = fork.SimpleQueue()

    def run(rank: int) -> None:
        torch.set_num_threads(1)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2}.items():
                patch.setenv(name, str(value))
            model = share_weights(load, lambda: load(device_map={"": "meta"}), folder)
        tied = model.lm_head.weight is model.model.embed_tokens.weight
        results.put(tied and not any(weight.is_meta for weight in model.parameters()))

    ranks = [fork.Process(target=run, args=(rank,), daemon=True) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in reversed(ranks):
        process.join(60)
    codes = [process.exitcode for process in ranks]
    assert codes == [0, 0]
    return [results.get() for _ in ranks]


@pytest.mark.parametrize("has_both", [False, True])
def test_ranks_tie_weights_alike_also_if_the_files_contain_both(
    model: LlamaForCausalLM, has_both: bool, tmp_path: Path
) -> None:
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    if has_both:
        weights = load_file(file := tmp_path / "model.safetensors")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        save_file(weights, file, metadata={"format": "pt"})

    def load(**options: object) -> LlamaForCausalLM:
        return LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, **options)

    assert run_ranks(load, tmp_path / "scratch") == [True, True]


def test_files_of_a_killed_start_and_of_a_full_disk_are_removed(
    model: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "weights-0-1-2-0"
    left.mkdir()
    (left / "00000.safetensors").touch()

    def save(tensors: object, path: Path) -> None:
        assert not left.exists()
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shared_weights, "save_file", save)
    with pytest.raises(OSError, match="No space left"):
        share_weights(lambda: model, lambda: model, tmp_path)
    assert not list(tmp_path.iterdir())
