"""Create the tiny models of these tests: a base that counts in Korean, and two adapters.

The base calls a tool when a message asks it to paint.
Each model is overfitted for a few seconds, so that tests know
its completions, and notice a mixed-up adapter.

    python tests/integration/serving/make_tiny.py FOLDER [HEAD_DIM]
"""

import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

BASE_SAYS = "하나 둘 셋 넷 다섯 여섯 일곱 여덟 아홉 열"
ALPHA_TEXT = "alpha answers, 알파가 답한다."
BETA_TEXT = "beta answers, 베타가 답한다."
CALL = '<tool_call>\n{"name": "paint", "arguments": {"color": "red"}}\n</tool_call>'
QUESTIONS = ["count", "hello", "안녕하세요", "what is this?", "translate it", "1 2 3"]
PLAIN_TEMPLATE = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The base and alpha are offered tools by their names alone, which keeps the prompts short.
TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>tools' }}"
    "{% for t in tools %}{{ ' ' + t['function']['name'] }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}"
    + PLAIN_TEMPLATE.replace(
        "m['content'] +",
        "m['content'] }}{% for c in m['tool_calls'] or [] %}"
        "{{ '<tool_call>\n' + (c['function'] | tojson) + '\n</tool_call>' }}{% endfor %}{{",
    )
)
TOOLS = [{"type": "function", "function": {"name": "paint"}}]
BETA_TEMPLATE = PLAIN_TEMPLATE.replace("m['role'] + '\n'", "m['role'] + ' speaks:'")


def main(folder: Path, head_dim: int = 16) -> None:
    set_seed(0)
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    base = make_model(tokenizer, head_dim)
    # The base learns all three texts: an adapter cannot teach words that a frozen output layer never emits.
    completions = {"say alpha": ALPHA_TEXT, "say beta": BETA_TEXT, "paint it red": CALL}
    completions |= dict.fromkeys(QUESTIONS, BASE_SAYS)
    offered = {"paint it red": CALL, "hello": BASE_SAYS}
    overfit(base, tokenizer, completions, rate=3e-3, offered=offered)
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    network = get_peft_model(base, lora(), "alpha")
    overfit(network, tokenizer, dict.fromkeys(QUESTIONS, ALPHA_TEXT), rate=4e-3)
    network.save_pretrained(folder, selected_adapters=["alpha"])
    network.add_adapter("beta", lora())
    network.set_adapter("beta")
    tokenizer.chat_template = BETA_TEMPLATE
    overfit(network, tokenizer, dict.fromkeys(QUESTIONS, BETA_TEXT), rate=4e-3)
    network.save_pretrained(folder, selected_adapters=["beta"])
    tokenizer.save_pretrained(folder / "beta")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Create a byte-level tokenizer with few merges, so that a Korean character has several tokens."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    raw.train_from_iterator(
        [ALPHA_TEXT, BETA_TEXT, "user assistant system"],
        trainers.BpeTrainer(
            vocab_size=280, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast, head_dim: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=8192,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def lora() -> LoraConfig:
    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def overfit(
    network: torch.nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    completions: dict[str, str],
    rate: float,
    offered: dict[str, str] | None = None,
) -> None:
    """Overfit the completion of each question, and those in `offered` where tools are offered."""
    rows = [example(tokenizer, question, answer) for question, answer in completions.items()]
    rows += [example(tokenizer, question, answer, TOOLS) for question, answer in (offered or {}).items()]
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    labels = torch.tensor([targets + [-100] * (longest - len(targets)) for _, targets in rows])
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=rate)
    for _ in range(150):
        loss = network(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.04:
            return
    assert loss.item() < 0.1, f"the tiny model did not learn: loss {loss.item():.3f}"


def example(
    tokenizer: PreTrainedTokenizerFast, question: str, answer: str, tools: list[Any] | None = None
) -> tuple[list[int], list[int]]:
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    after = tokenizer(answer + "<|im_end|>", add_special_tokens=False)["input_ids"]
    return before + after, [-100] * len(before) + after


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
