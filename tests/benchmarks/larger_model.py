"""Make a model whose steps take as long as those of real training do, with random weights.

python -m tests.benchmarks.larger_model models/starter models/larger
"""

import sys

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed


def main(tokenizer_of: str, out: str) -> None:
    """Save it with the tokenizer of another model."""
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
