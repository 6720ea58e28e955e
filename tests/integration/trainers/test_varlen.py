"""Goal: torch's variable-length attention trains as padded attention does, and is chosen where it can run.

A CPU computes it by the reference implementation. Everything around the kernel is what a GPU runs: the
collator, the boundaries of rows, the mask and the sliding window. Tolerances are those of fp32.
"""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close
from transformers import AutoConfig, PreTrainedModel
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tests.architectures import ARCHITECTURES, MULTIMODAL, Architecture, build_model, find_architecture
from tests.integration.trainers.conftest import events, losses
from tests.integration.trainers.stages import run_stage
from trainers.configs.stages.sft import SftConfig
from trainers.configs.training import Attention, Precision
from trainers.modeling.architecture import list_attention
from trainers.modeling.attention.choice import AttentionUnsupported, describe_package, pick_attention
from trainers.modeling.attention.reference import reference_varlen_attn
from trainers.modeling.attention.varlen import VARLEN_ARCHITECTURES, attend_varlen
from trainers.runtime.errors import DeviceUnavailable
from trainers.training.padding_free import uses_padding_free

Stage = dict[str, Any]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
LENGTHS = (9, 40, 23)  # Two are longer than the sliding windows of the models.
ROWS = [
    {"input_ids": [3 + (7 * length + 5 * n) % 60 for n in range(length)], "seq_lengths": [length]}
    for length in LENGTHS
]
PACKED = [
    {"input_ids": ROWS[0]["input_ids"] + ROWS[1]["input_ids"], "seq_lengths": list(LENGTHS[:2])},
    ROWS[2],
]
PROVEN = [known for known in [*ARCHITECTURES, *MULTIMODAL] if known.text_architecture in VARLEN_ARCHITECTURES]
FAMILIES = ["Llama", "Qwen 2", "Qwen 3", "Mistral", "Gemma 3", "Mistral 3 with vision"]


def build(architecture: Architecture, attention: str) -> PreTrainedModel:
    return build_model(architecture.config(64, 0, 1), attn_implementation=attention)


def collate(rows: list[dict[str, Any]], padding_free: bool = True) -> dict[str, Any]:
    return dict(DataCollatorForLanguageModeling(pad_token_id=0, padding_free=padding_free)(rows))


def loss_and_gradients(model: torch.nn.Module, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the loss, summed over tokens as it is over the micro-batches of a step, and its gradients."""
    model.zero_grad()
    loss = model(**inputs, use_cache=False, num_items_in_batch=1).loss
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    return {"loss": loss.detach()} | gradients


@pytest.mark.parametrize("window", [None, 8])
def test_the_reference_equals_torchs_attention_of_each_row(window: int | None) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(sum(LENGTHS), heads, 16) for heads in (4, 2, 2))
    boundaries = torch.tensor([0, *LENGTHS]).cumsum(0)
    options: Any = {"window_size": (window - 1 if window else -1, 0), "enable_gqa": True}
    result = reference_varlen_attn(query, key, value, boundaries, boundaries, 40, 40, **options)
    rows = zip(*(tensor.transpose(0, 1).split(LENGTHS, dim=1) for tensor in (query, key, value)), strict=True)
    for row, (own_query, own_key, own_value) in zip(result.split(LENGTHS), rows, strict=True):
        mask = torch.ones(len(row), len(row)).tril().triu(1 - (window or len(row))).bool()
        expected = scaled_dot_product_attention(own_query, own_key, own_value, mask, enable_gqa=True)
        assert_close(row, expected.transpose(0, 1))


@pytest.mark.parametrize("architecture", PROVEN, ids=lambda architecture: architecture.name)
def test_packed_rows_have_the_logits_of_each_alone(architecture: Architecture) -> None:
    model = build(architecture, "eager").eval()
    with torch.inference_mode():
        apart = [model(torch.tensor([row["input_ids"]])).logits[0] for row in ROWS]
        model.set_attn_implementation("varlen")
        assert_close(
            model(**collate(ROWS), use_cache=False).logits[0], torch.cat(apart), atol=1e-5, rtol=1e-4
        )


def test_every_listed_architecture_is_proved() -> None:
    assert {architecture.text_architecture for architecture in PROVEN} == VARLEN_ARCHITECTURES


def test_rows_that_a_model_would_mix_are_noticed() -> None:
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        test_packed_rows_have_the_logits_of_each_alone(find_architecture("StableLM"))


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_padded_rows(family: str, tuning: str) -> None:
    model: Any = build(find_architecture(family), "sdpa")
    if tuning == "lora":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
            model = get_peft_model(model, adapter)
    padded = loss_and_gradients(model, collate(ROWS, padding_free=False))
    model.base_model.set_attn_implementation("varlen")
    assert model.config._attn_implementation == "varlen"
    for rows in (ROWS, PACKED):
        assert_close(loss_and_gradients(model, collate(rows)), padded, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "tuning",
    [{"rank": 4, "alpha": 8}, pytest.param({"method": "full"}, marks=pytest.mark.slow)],
    ids=["lora", "full"],
)
def test_training_equals_that_with_padded_rows(short_sft: Stage, tuning: Stage, tmp_path: Path) -> None:
    stage = short_sft | {"tuning": tuning, "max_steps": 4}
    result = run_stage(stage | {"attention": "varlen"}, tmp_path / "varlen")
    run_stage(stage | {"attention": "sdpa"}, tmp_path / "padded")
    assert losses(tmp_path / "varlen") == pytest.approx(losses(tmp_path / "padded"), rel=1e-4)
    tokens = [events(tmp_path / name, "metrics")[-1]["values"]["tokens"] for name in ("varlen", "padded")]
    assert result is not None
    assert tokens == [result["metrics"]["tokens"]] * 2
    assert "varlen" not in "".join(path.read_text() for path in (tmp_path / "varlen/model").glob("*.json"))


@pytest.mark.slow
def test_packed_training_equals_that_under_a_mask(short_sft: Stage, tmp_path: Path) -> None:
    stage = short_sft | {"packing": True, "max_length": 128, "batch_size": 2, "max_steps": 4}
    run_stage(stage | {"attention": "varlen"}, tmp_path / "varlen")
    run_stage(stage | {"attention": "sdpa"}, tmp_path / "masked")
    assert losses(tmp_path / "varlen") == pytest.approx(losses(tmp_path / "masked"), rel=1e-4)


@pytest.mark.parametrize("name", ["Llama", "Mistral"])
def test_prompts_with_padding_are_completed_as_with_a_mask(name: str) -> None:
    model = build(find_architecture(name), "sdpa").eval()
    prompts = torch.tensor([[0] * 20 + [5, 9, 12], list(range(3, 26))])
    settings: Any = {"attention_mask": (prompts != 0).long(), "max_new_tokens": 8, "do_sample": False}
    expected = model.generate(prompts, **settings)
    model.set_attn_implementation("varlen")
    assert model.generate(prompts, **settings).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "gemma2"}, "not proven"),
        ({"attn_logit_softcapping": 50.0}, "caps the scores"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "attends to later tokens"),
        ({"attention_dropout": 0.1}, "drops attention at random"),
        ({"head_dim": 100}, "heads of width 100"),
    ],
    ids=str,
)
def test_a_model_that_the_kernel_does_not_compute_is_refused(changes: Stage, reason: str) -> None:
    model = AutoConfig.for_model(changes.get("model_type", "qwen3"))
    for name, value in changes.items():
        setattr(model, name, value)
    with pytest.raises(AttentionUnsupported, match=reason):
        pick_attention(Attention.varlen, CPU, model)


@pytest.mark.parametrize("option", [{"softcap": 50.0}, {"s_aux": torch.ones(4)}, {"dropout": 0.1}], ids=str)
def test_what_the_kernel_would_leave_out_is_an_error(option: Stage) -> None:
    query = torch.ones(1, 4, 3, 8)
    with pytest.raises(ValueError, match=next(iter(option))):
        attend_varlen(torch.nn.Module(), query, query, query, None, **option)


@pytest.mark.parametrize(
    ("model_type", "capability", "precision", "expected"),
    [
        ("llama", (8, 0), Precision.auto, "varlen"),
        ("mistral", (9, 0), Precision.bf16, "varlen"),
        ("gemma3_text", (12, 0), Precision.bf16, "varlen"),
        ("llama", (8, 0), Precision.fp32, "sdpa"),
        ("llama", (7, 5), Precision.auto, "sdpa"),
        ("lfm2", (9, 0), Precision.bf16, "sdpa"),
        ("gemma2", (9, 0), Precision.bf16, "eager"),
        ("gpt_oss", (9, 0), Precision.bf16, "eager"),
    ],
    ids=str,
)
def test_auto_on_a_gpu_is_the_kernel_where_it_runs(
    model_type: str,
    capability: tuple[int, int],
    precision: Precision,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert pick_attention(Attention.auto, GPU, AutoConfig.for_model(model_type), precision) == expected


def test_a_named_kernel_needs_its_hardware_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    llama = AutoConfig.for_model("llama")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla T4")
    with pytest.raises(DeviceUnavailable, match=r"compute capability 8\.0 .* Tesla T4"):
        pick_attention(Attention.varlen, GPU, llama)
    with pytest.raises(AttentionUnsupported, match="16 bits only, but precision is fp32"):
        pick_attention(Attention.varlen, GPU, llama, Precision.fp32)
    with pytest.raises(DeviceUnavailable, match="neither the package flash-attn nor the package kernels"):
        pick_attention(Attention.flash_attention_2, GPU, llama)


def test_rows_are_concatenated_where_the_kernel_is_used() -> None:
    config = SftConfig.model_validate({"base": "b", "dataset": "d", "queue": "cpu", "attention": "varlen"})
    mistral = AutoConfig.for_model("mistral", sliding_window=512)
    assert uses_padding_free(config, mistral)
    assert Attention.varlen not in list_attention(AutoConfig.for_model("gemma2"))
    assert describe_package("varlen") is None
    assert "flash_attention_2 of the installed package" in str(describe_package("flash_attention_2"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("window", [None, 8])
def test_the_kernel_of_a_gpu_equals_the_reference(window: int | None) -> None:
    from torch.nn.attention.varlen import varlen_attn

    torch.manual_seed(0)
    shapes = [(sum(LENGTHS), heads, 64) for heads in (8, 2, 2)]
    boundaries = torch.tensor([0, *LENGTHS]).cumsum(0).to("cuda", torch.int32)
    options: Any = {"window_size": (window - 1 if window else -1, 0), "enable_gqa": True}
    results = []
    kernels: list[Any] = [varlen_attn, reference_varlen_attn]
    for kernel in kernels:
        torch.manual_seed(0)
        inputs = [
            torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_() for shape in shapes
        ]
        output = kernel(*inputs, boundaries, boundaries, 40, 40, **options)
        results.append([output, *torch.autograd.grad(output.float().square().sum(), inputs)])
    assert_close(*results, atol=0.05, rtol=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_gpu_trains_packed_rows_as_padded_ones(family: str) -> None:
    model = build(find_architecture(family), "sdpa").cuda()
    results = []
    for attention, inputs in (("sdpa", collate(ROWS, padding_free=False)), ("varlen", collate(PACKED))):
        model.set_attn_implementation(attention)
        on_gpu = {name: t.cuda() if isinstance(t, torch.Tensor) else t for name, t in inputs.items()}
        with torch.autocast("cuda", torch.bfloat16):
            results.append(loss_and_gradients(model, on_gpu)["loss"])
    assert_close(*results, atol=0.0, rtol=0.01)
