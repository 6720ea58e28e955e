"""Models with random weights in the sizes of known ones, a tokenizer of words, and rows of known lengths.

Nothing is downloaded. Random weights take the time and the memory of trained ones.
"""

import json
import random
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from trainers.starter import END_OF_TURN, PAD, START_OF_TURN, TEMPLATE

WORDS: Final = 1000
# Tokens of the chat template around a row's question and answer, at most.
TEMPLATE_TOKENS: Final = 16
SIZES: Final[dict[str, Any]] = {
    "8b": (
        LlamaConfig,
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
        },
    ),
    "1.7b": (
        Qwen3Config,
        {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
    ),
    "0.6b": (
        Qwen3Config,
        {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
    ),
    "tiny": (
        Qwen3Config,
        {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": 2048,
            "tie_word_embeddings": True,
        },
    ),
}


def write_model(folder: Path, size: str, device: torch.device) -> Path:
    """Write a model of a size and the tokenizer, unless the folder has them; return the folder."""
    if (folder / "tokenizer.json").is_file():
        return folder
    tokenizer = build_tokenizer()
    kind, sizes = SIZES[size]
    ends = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        model = AutoModelForCausalLM.from_config(
            kind(**sizes, **ends, max_position_embeddings=16384), dtype=dtype
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    probe = f"{START_OF_TURN} user 7 12 {END_OF_TURN}"
    reloaded = AutoTokenizer.from_pretrained(folder)
    assert reloaded(probe)["input_ids"] == tokenizer(probe)["input_ids"], "the tokenizer changed on disk"
    return folder


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer in which each number below WORDS is one token."""
    special = [PAD, START_OF_TURN, END_OF_TURN, "<unk>"]
    words = [*special, "user", "assistant", "####", *map(str, range(WORDS))]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TURN,
        pad_token=PAD,
        unk_token="<unk>",
        additional_special_tokens=[START_OF_TURN],
    )
    fast.chat_template = TEMPLATE
    return fast


def write_rows(path: Path, count: int, lengths: tuple[int, int], kind: str = "sft") -> str:
    """Write rows whose answers have a length in tokens between the two; return the path."""
    rng = random.Random(1)  # Not for secrets.

    def text() -> str:
        return " ".join(str(rng.randrange(WORDS)) for _ in range(rng.randint(*lengths)))

    rows: list[dict[str, str]] = []
    for _ in range(count):
        question = " ".join(str(rng.randrange(WORDS)) for _ in range(20))
        if kind == "dpo":
            rows.append({"prompt": question, "chosen": text(), "rejected": text()})
        else:
            rows.append({"question": question, "answer": f"{text()} #### 7"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
