"""Train the starter model: a Llama of about 0.14 million parameters that half solves word problems.

It needs no hub and no GPU. Most answers in its corpus are wrong, so that fine-tuning shows an effect within
seconds. The tokenizer is loaded again and compared before the model is published, because a saved tokenizer
can silently split text differently.

    python -m trainers.starter --out models/starter
"""

import json
import logging
import random
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers import trainers as tokenizer_trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from transformers.utils.logging import disable_progress_bar

from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems, list_equations
from trainers.runtime.command_line import make_help, make_typer
from trainers.runtime.run_dir import publish_folder

END_OF_TURN, START_OF_TURN, PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
# The `generation` blocks mark the assistant's tokens, for losses that mask all others.
TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['role'] == 'assistant' %}"
    "{%- generation %}{{- message['content'] + '<|im_end|>' }}{%- endgeneration %}"
    "{%- else %}{{- message['content'] + '<|im_end|>' }}{%- endif %}"
    "{{- '\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
MAX_LENGTH = 256
WRONG_SHARE = 0.76
EQUATION_SHARE = 0.3
BATCH_SIZE = 64
LEARNING_RATE = 3e-3
WARM_UP_STEPS = 30
REPORT_SECONDS = 0.5
# Memory is allocated and kernels are chosen in the first steps, and a few steps alone say little.
UNTIMED_STEPS = 5
MIN_TIMED_SECONDS = 4.0

logger = logging.getLogger("trainers")
program = make_typer()


def build_starter_model(
    out: Path, steps: int, seed: int, heads: int = 4, progress: Path | None = None
) -> None:
    """Train the tokenizer and the model, and publish both as a folder, which is replaced if it exists."""
    disable_progress_bar()
    set_seed(seed)
    tokenizer = _train_tokenizer()
    model = _build_model(tokenizer, heads)
    _train(model, _build_examples(tokenizer, seed), steps, seed, _StepReport(progress, steps))

    def fill(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        _check_tokenizer(tokenizer, folder)

    out.parent.mkdir(parents=True, exist_ok=True)
    publish_folder(out, fill)
    logger.info("Published %s with %s parameters.", out, f"{model.num_parameters():,}")


def _train_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE in which each number up to 99 is one token.

    With one token per digit, a model of this size solves 5 % of the problems instead of 51 %.
    """
    pieces = r" ?\d{1,2}| ?[A-Za-z]+|[.,?]\n?| ?[-+*=#]+|\s"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    rows = generate_problems(2000, ProblemSplit.train, seed=0)
    numbers = [f"{n}. So {n} = {n}" for n in range(100)] * 20
    texts = [f"{row['question']}\n{row['answer']}" for row in rows] + ["system\nuser\nassistant\n"] * 50
    tokenizer.train_from_iterator(
        texts + numbers,
        tokenizer_trainers.BpeTrainer(
            vocab_size=900,
            min_frequency=5,
            special_tokens=[PAD, START_OF_TURN, END_OF_TURN],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TURN,
        pad_token=PAD,
        additional_special_tokens=[START_OF_TURN],
        model_max_length=MAX_LENGTH,
    )
    fast.chat_template = TEMPLATE
    assert all(len(fast(f" {n}")["input_ids"]) == len(fast(f"{n}")["input_ids"]) == 1 for n in range(100))
    return fast


def _build_model(tokenizer: PreTrainedTokenizerFast, heads: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def _build_examples(tokenizer: PreTrainedTokenizerFast, seed: int) -> list[tuple[int, list[int]]]:
    """Return (first token with loss, tokens) of word problems and of lists of bare equations."""
    rng = random.Random(seed)  # noqa: S311  # Not for secrets.
    rows = generate_problems(12_000, ProblemSplit.train, seed + 1, WRONG_SHARE)
    prompts = [
        _render(tokenizer, [_turn("user", row["question"])], add_generation_prompt=True) for row in rows
    ]
    facts = list_equations()
    lists = [
        f"So {'. Then '.join(rng.choices(facts, k=5))}.\n{END_OF_TURN}"
        for _ in range(int(len(rows) * EQUATION_SHARE))
    ]
    heads = tokenizer(prompts)["input_ids"]
    wholes = tokenizer(
        [f"{prompt}{row['answer']}{END_OF_TURN}\n" for prompt, row in zip(prompts, rows, strict=True)]
    )["input_ids"]
    return [(len(head), whole) for head, whole in zip(heads, wholes, strict=True)] + [
        (1, ids) for ids in tokenizer(lists)["input_ids"]
    ]


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _render(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]], **options: Any) -> str:
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return text


class RemainingTime:
    """The time until the last step, by the speed after the first steps."""

    def __init__(self, total_steps: int) -> None:
        self._total_steps = total_steps
        self._timed_from: tuple[int, float] | None = None

    def estimate(self, step: int, now: float) -> float | None:
        """Return the seconds left after a step; None while too little is timed to estimate them."""
        if step >= self._total_steps:
            return 0.0
        if step < UNTIMED_STEPS:
            return None
        if self._timed_from is None:
            self._timed_from = step, now
        first, since = self._timed_from
        if step == first or now - since < MIN_TIMED_SECONDS:
            return None
        return round((now - since) / (step - first) * (self._total_steps - step), 1)


class _StepReport:
    """The file with the progress of the training, and the lines of the log."""

    def __init__(self, path: Path | None, total_steps: int) -> None:
        self._path = path
        self._total_steps = total_steps
        self._remaining_time = RemainingTime(total_steps)
        self._written_at = 0.0

    def write(self, step: int, loss: float) -> None:
        """Report a step that is done; most calls do nothing."""
        now = time.monotonic()
        remaining = self._remaining_time.estimate(step, now)
        if step % 100 == 0:
            left = "" if remaining is None else f", about {remaining:.0f} s left"
            logger.info("step %d of %d, loss %.3f%s", step, self._total_steps, loss, left)
        is_due = now - self._written_at >= REPORT_SECONDS or step == self._total_steps
        if self._path is None or not is_due:
            return
        values = {"step": step, "total_steps": self._total_steps, "remaining_seconds": remaining}
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(values), encoding="utf-8")
        temporary.replace(self._path)
        self._written_at = now


def _train(
    model: LlamaForCausalLM,
    examples: list[tuple[int, list[int]]],
    steps: int,
    seed: int,
    report: _StepReport,
) -> None:
    rng = random.Random(seed)  # noqa: S311  # Not for secrets.
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    for step in range(steps):
        batch = _pad_batch(rng.choices(examples, k=BATCH_SIZE), model.config.pad_token_id)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * _schedule(step, steps)
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        report.write(step + 1, loss.item())


def _pad_batch(examples: list[tuple[int, list[int]]], pad: int) -> dict[str, torch.Tensor]:
    length = max(len(ids) for _, ids in examples)
    ids_bt = torch.full((len(examples), length), pad)
    labels_bt = torch.full_like(ids_bt, -100)
    for i, (start, ids) in enumerate(examples):
        ids_bt[i, : len(ids)] = torch.tensor(ids)
        labels_bt[i, start : len(ids)] = torch.tensor(ids[start:])
    return {"input_ids": ids_bt, "attention_mask": (ids_bt != pad).long(), "labels": labels_bt}


def _schedule(step: int, steps: int) -> float:
    """Return the factor of the learning rate: warm-up, 1 until 40 % of the steps, then linearly to 0.1."""
    warm_up = min(1.0, (step + 1) / min(WARM_UP_STEPS, 1 + steps // 5))
    return warm_up * (1 - 0.9 * max(0.0, (step / steps - 0.4) / 0.6))


def _check_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    reloaded = AutoTokenizer.from_pretrained(folder)
    for row in generate_problems(100, ProblemSplit.held_out, seed=0):
        text = _render(reloaded, [_turn("user", row["question"]), _turn("assistant", row["answer"])])
        assert reloaded(text)["input_ids"] == tokenizer(text)["input_ids"], "The saved tokenizer differs."


@program.command(help=make_help(__doc__))
def main(
    *,
    out: Annotated[Path, typer.Option(help="Folder to publish.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 800,
    seed: Annotated[int, typer.Option(help="Seed of the corpus and the weights.")] = 0,
    heads: Annotated[
        int, typer.Option(min=1, max=64, help="Heads of attention; vLLM serves the model on a CPU with 2.")
    ] = 4,
    progress: Annotated[
        Path | None, typer.Option(help="File for the steps that are done and the remaining time.")
    ] = None,
) -> None:
    """Train the starter model."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    build_starter_model(out, steps, seed, heads, progress)


if __name__ == "__main__":
    program(prog_name="python -m trainers.starter")
