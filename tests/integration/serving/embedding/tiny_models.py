"""Tiny embedding models in the format of sentence-transformers: BERT, XLM-R and a decoder."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    XLMRobertaConfig,
    XLMRobertaModel,
    set_seed,
)

PACKAGE = "sentence_transformers.models."
SIZE = 64
WINDOW = 48
SHAPE: dict[str, Any] = {"hidden_size": SIZE, "intermediate_size": 96, "num_hidden_layers": 2}
TEXT = "the cat sat on mat a dog ran in rain sun is bright today search query good morning"


def build_models(folder: Path) -> None:
    """Create `bert`, `xlmr`, `qwen` and `bare`, a BERT without the files of sentence-transformers."""
    set_seed(0)
    build_bert(folder / "bert")
    build_xlmr(folder / "xlmr")
    build_qwen(folder / "qwen")
    build_bert(folder / "bare")
    for name in ("modules.json", "1_Pooling/config.json", "config_sentence_transformers.json"):
        (folder / "bare" / name).unlink()


def build_bert(folder: Path) -> None:
    """Mean pooling and normalization."""
    tokenizer = word_tokenizer("[CLS]", "[SEP]", "[PAD]")
    config = BertConfig(
        **SHAPE, vocab_size=len(tokenizer), num_attention_heads=2, max_position_embeddings=WINDOW
    )
    save(folder, randomized(BertModel(config)), tokenizer)
    write_modules(folder, {"pooling_mode_mean_tokens": True}, normalize=True)


def build_xlmr(folder: Path) -> None:
    """CLS pooling, a dense layer, a default prompt that is not pooled, and positions that begin at 2."""
    tokenizer = word_tokenizer("<s>", "</s>", "<pad>")
    config = XLMRobertaConfig(
        **SHAPE,
        vocab_size=len(tokenizer),
        num_attention_heads=2,
        max_position_embeddings=WINDOW + 2,
        pad_token_id=tokenizer.pad_token_id,
        type_vocab_size=1,
    )
    save(folder, randomized(XLMRobertaModel(config)), tokenizer)
    write_modules(folder, {"pooling_mode": ["mean", "max"], "include_prompt": False}, dense=(2 * SIZE, 32))
    prompts = {"prompts": {"query": "search query "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))


def build_qwen(folder: Path) -> None:
    """Pooling of the last token, which the tokenizer adds, and Matryoshka dimensions."""
    tokenizer = word_tokenizer("", "<|endoftext|>", "<|pad|>", padding_side="left")
    config = Qwen3Config(
        **SHAPE,
        vocab_size=len(tokenizer),
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=WINDOW,
        matryoshka_dimensions=[16, 32],
    )
    save(folder, randomized(Qwen3Model(config)), tokenizer)
    write_modules(folder, {"pooling_mode_lasttoken": True}, normalize=True)


def write_modules(
    folder: Path, pooling: dict[str, Any], *, dense: tuple[int, int] | None = None, normalize: bool = False
) -> None:
    """Write `modules.json` and the folders that it names."""
    kinds = ["Transformer", "Pooling", *(["Dense"] if dense else []), *(["Normalize"] if normalize else [])]
    paths = ["" if kind == "Transformer" else f"{index}_{kind}" for index, kind in enumerate(kinds)]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": PACKAGE + kind}
        for index, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {}}')
    write_config(folder / "1_Pooling", {"word_embedding_dimension": SIZE, **pooling})
    if dense is not None:
        activation = "torch.nn.modules.activation.Tanh"
        sizes = {"in_features": dense[0], "out_features": dense[1], "bias": True}
        write_config(folder / "2_Dense", {**sizes, "activation_function": activation})
        linear = torch.nn.Linear(*dense)
        save_file(
            {"linear.weight": linear.weight.data, "linear.bias": linear.bias.data},
            folder / "2_Dense" / "model.safetensors",
        )


def write_config(folder: Path, config: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))


def word_tokenizer(
    first: str, last: str, padding: str, padding_side: str = "right"
) -> PreTrainedTokenizerFast:
    """Create a tokenizer of words that puts `first` and `last` around a text."""
    special = [token for token in (padding, "[UNK]", first, last) if token]
    vocabulary = {token: index for index, token in enumerate([*special, *TEXT.split()])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.decoder = decoders.WordPiece()
    raw.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}".strip(),
        special_tokens=[(token, vocabulary[token]) for token in (first, last) if token],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token=padding,
        unk_token="[UNK]",
        eos_token=last,
        padding_side=padding_side,
        model_max_length=WINDOW,
    )


def randomized(network: torch.nn.Module) -> torch.nn.Module:
    """Enlarge the initial weights, so that a token out of place changes an embedding visibly."""
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.15)
    return network.eval()


def save(folder: Path, network: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
