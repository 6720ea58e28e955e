"""Make a model whose steps take as long as those of real training do, with random weights.

python -m tests.benchmarks.larger_model models/starter models/larger
"""

import argparse
import json
from pathlib import Path

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

# As in small real models, the head is a quarter of the weights.
VOCABULARY = 4096
POSITIONS = 1024


def main() -> None:
    """Save it with the tokenizer of another model, or with one like it that is made for a file of rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tokenizer_of")
    parser.add_argument("out")
    parser.add_argument(
        "--rows", type=Path, help="JSONL whose words get tokens of their own, as in real models"
    )
    options = parser.parse_args()
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer_of)
    vocabulary = len(tokenizer)
    if options.rows:
        texts = [" ".join(json.loads(line).values()) for line in options.rows.read_text().splitlines()]
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
    model = LlamaForCausalLM(config)
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)


if __name__ == "__main__":
    main()
