"""A model with a sliding window that mlx-lm ignores."""

from pathlib import Path

from transformers import Gemma2Config, Gemma2ForCausalLM

from trainers.modeling.load import load_tokenizer


def write_windowed_model(starter: Path, folder: Path, window: int) -> Path:
    """Write a random model with the starter's tokenizer, and return its folder."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 1200}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, sliding_window=window)).save_pretrained(folder)
    load_tokenizer(str(starter)).save_pretrained(folder)
    return folder
