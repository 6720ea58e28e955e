"""The cost of a token under a grammar: the same number of tokens, free and constrained, from one engine.

python -m tests.benchmarks.serving.constrained

The model is tiny, with a vocabulary of 150,000 tokens: its step is much shorter than that of a real model, so
the ratio is an upper bound. CPU seconds are those of the engine.
"""

import os
import string
import tempfile
from itertools import islice, product
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from tests.benchmarks.report import p50, print_table
from tests.benchmarks.serving.hf_engine import measure
from tests.integration.serving.conftest import Server, serving
from tests.integration.serving.make_tiny import PLAIN_TEMPLATE

VOCABULARY_SIZE = 150_000
ROUNDS = 5
TOKENS = 200
RECORD: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "kind": {"enum": ["red", "green", "blue"]},
        "size": {"type": "integer", "minimum": 0, "maximum": 10_000},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 10}, "maxItems": 3},
    },
    "required": ["name", "kind", "size", "tags"],
    "additionalProperties": False,
}
RECORDS = {"type": "array", "items": RECORD, "minItems": 1000}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "records", "schema": RECORDS}}
METHODS: dict[str, dict[str, Any]] = {
    "free, greedy": {"temperature": 0},
    "schema, greedy": {"temperature": 0, "response_format": SCHEMA},
    "free, sampled": {"temperature": 1, "seed": 1},
    "schema, sampled": {"temperature": 1, "seed": 1, "response_format": SCHEMA},
}


def main() -> None:
    """Measure all methods in turn in each round, and print medians."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        create_model(folder / "model")
        arguments = ["--model", str(folder / "model"), "--served-name", "m"]
        with serving(folder / "hf.log", "serving.engines.hf", *arguments) as engine:
            engine.wait_until_ready()
            rounds: dict[str, list[tuple[float, float]]] = {method: [] for method in METHODS}
            for _ in range(ROUNDS + 1):
                for method, options in METHODS.items():
                    rounds[method].append(measure(engine.process.pid, lambda: generate(engine, options)))  # noqa: B023
    rows = []
    for method, found in rounds.items():
        # The first round loads the vocabulary and is not counted.
        cpu, wall = (p50(column) / TOKENS * 1000 for column in zip(*found[1:], strict=True))
        free = p50([cpu_seconds for cpu_seconds, _ in rounds[f"free,{method.split(',')[1]}"][1:]])
        rows.append([method, f"{cpu:.2f}", f"{cpu / (free / TOKENS * 1000):.2f}", f"{wall:.2f}"])
    header = ["method", "CPU ms a token", "× free", "wall ms a token"]
    print_table(f"{VOCABULARY_SIZE:,} tokens in the vocabulary", header, rows)


def generate(engine: Server, options: dict[str, Any]) -> None:
    """Generate exactly TOKENS tokens."""
    messages = [{"role": "user", "content": "list them"}]
    body = {"model": "m", "messages": messages, "max_tokens": TOKENS, "ignore_eos": True, **options}
    status, response = engine.post("/v1/chat/completions", body)
    assert status == 200, response
    assert response["usage"]["completion_tokens"] == TOKENS, response["choices"]


def create_model(folder: Path) -> None:
    """Save a random model whose tokens are the bytes and words of up to four letters."""
    set_seed(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|im_start|>": 0, "<|im_end|>": 1}
    vocabulary |= {character: number for number, character in enumerate(alphabet, start=2)}
    words = (letters for size in (2, 3, 4) for letters in product(string.ascii_lowercase, repeat=size))
    merges = []
    for letters in islice(words, VOCABULARY_SIZE - len(vocabulary)):
        merges.append(("".join(letters[:-1]), letters[-1]))
        vocabulary["".join(letters)] = len(vocabulary)
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>")
    tokenizer.chat_template = PLAIN_TEMPLATE
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


if __name__ == "__main__":
    main()
