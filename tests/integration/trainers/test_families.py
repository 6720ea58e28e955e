"""Chat templates of model families, on tiny base models of their architectures without a template."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from trainers.modeling import families
from trainers.modeling.families import ModelFamily, SystemTurn
from trainers.modeling.load import load_model, load_tokenizer

CHAT = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U"},
    {"role": "assistant", "content": "A"},
    {"role": "user", "content": "V"},
]
RENDERED = {
    "qwen": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n"
    "<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n",
    "llama": "<BOS><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nV<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<BOS>[INST] S\n\nU[/INST] A</s>[INST] V[/INST]",
    "phi": "<|system|>\nS<|end|>\n<|user|>\nU<|end|>\n<|assistant|>\nA<|end|>\n"
    "<|user|>\nV<|end|>\n<|assistant|>\n",
    "gemma": "<BOS><start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"
    "<start_of_turn>user\nV<end_of_turn>\n<start_of_turn>model\n",
}
MODEL_TYPES = [(family, kind) for family in families.FAMILIES for kind in sorted(family.model_types)]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def make_base(folder: Path, family: ModelFamily, model_type: str) -> Path:
    """Return a random model of the architecture, with its family's special tokens and without a template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<BOS>",
        eos_token="<EOS>",
        extra_special_tokens=list(family.special_tokens),
    )
    tokenizer.save_pretrained(folder)
    more: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "vocab_size": 300}
    if "moe" in model_type or model_type == "mixtral":
        more |= {
            "num_experts": 2,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 16,
        }
    if "qwen3_5" in model_type:
        more["layer_types"] = ["linear_attention", "full_attention"]
    config = AutoConfig.for_model(model_type, **SIZES, **more)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("family", "model_type"), MODEL_TYPES, ids=[kind for _, kind in MODEL_TYPES])
def test_a_base_model_gets_the_template_and_end_of_turn_of_its_family(
    family: ModelFamily, model_type: str, tmp_path: Path
) -> None:
    base = make_base(tmp_path, family, model_type)
    tokenizer = load_tokenizer(str(base))
    text = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert text == RENDERED[family.name]
    assert tokenizer.eos_token == family.end_of_turn
    ids = tokenizer.apply_chat_template(CHAT, return_tensors="pt", return_dict=True)["input_ids"]
    assert torch.isfinite(load_model(str(base), torch.float32)(input_ids=ids).logits).all()


@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.name)
def test_the_tokens_that_carry_loss_are_the_answers_with_their_end(
    family: ModelFamily, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(str(make_base(tmp_path, family, min(family.model_types))))
    encoded = tokenizer.apply_chat_template(CHAT[:3], return_dict=True, return_assistant_tokens_mask=True)
    pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    learned = tokenizer.decode([token for token, carries in pairs if carries])
    assert learned.strip() == "A" + family.end_of_turn


@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.name)
def test_a_prompt_is_a_prefix_of_the_conversation_that_goes_on(family: ModelFamily, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(make_base(tmp_path, family, min(family.model_types))))
    prompt = tokenizer.apply_chat_template(CHAT[:2], tokenize=False, add_generation_prompt=True)
    assert tokenizer.apply_chat_template(CHAT, tokenize=False).startswith(prompt)


@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.name)
def test_tools_are_refused_rather_than_left_out(family: ModelFamily, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(make_base(tmp_path, family, min(family.model_types))))
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}
    with pytest.raises(Exception, match="does not support tools"):
        tokenizer.apply_chat_template(CHAT, tools=[tool], tokenize=False)


@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.name)
def test_a_family_names_the_place_of_the_system_message(family: ModelFamily) -> None:
    alone = family.system is SystemTurn.own_turn
    assert ("S\n\nU" not in RENDERED[family.name]) == alone


def test_an_architecture_without_the_special_tokens_of_a_family_has_no_template(tmp_path: Path) -> None:
    make_base(tmp_path, families.QWEN, "llama")
    assert families.detect_family("llama", set(families.QWEN.special_tokens)) is None
    assert load_tokenizer(str(tmp_path)).chat_template is None


def test_a_model_s_own_template_goes_first(tmp_path: Path) -> None:
    base = make_base(tmp_path, families.QWEN, "qwen3")
    (base / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert load_tokenizer(str(base)).apply_chat_template(CHAT, tokenize=False) == "S"
