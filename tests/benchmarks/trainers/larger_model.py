"""Create a model with random weights whose steps take about as long as those of real training.

python -m tests.benchmarks.trainers.larger_model models/starter models/larger
"""

import argparse
import json
from pathlib import Path

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

# As in small real models, the output layer has a quarter of the weights.
VOCABULARY = 4096
POSITIONS = 1024


def create_model(tokenizer_from: str, out: str, rows: Path | None = None) -> None:
    """Save a model with the tokenizer of another one.

    With `rows` (JSONL), a new tokenizer of the same kind is trained on them, so that words get tokens of
    their own, as in real models.
    """
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)
    vocabulary = len(tokenizer)
    if rows:
        texts = [" ".join(json.loads(line).values()) for line in rows.read_text().splitlines()]
        tokenizer = tokenizer.train_new_from_iterator(texts, VOCABULARY, show_progress=False)
        vocabulary = VOCABULARY
    tokenizer.model_max_length = POSITIONS
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("tokenizer_from")
    parser.add_argument("out")
    parser.add_argument("--rows", type=Path, help="JSONL to train the tokenizer on")
    options = parser.parse_args()
    create_model(options.tokenizer_from, options.out, options.rows)
