"""The log-probabilities of the trained model, with which every exported file is compared."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError

PROMPTS = (
    "How many are 2 and 3?",
    "안녕하세요. Translate this, please.",
    "List three colours.\nThen stop.",
    "A train leaves at 9:40 and arrives at 11:05. How many minutes does the journey take?",
)


class ExportDiffers(ProgramError):
    """The exported file does not compute what the trained model does."""

    code = ErrorCode.export_differs


@dataclass(frozen=True)
class ReferencePrompt:
    """A prompt as text and tokens, with the log-probability of each token after the first."""

    text: str
    ids: list[int]
    logprobs: list[float]


def compute_reference(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[ReferencePrompt]:
    """Return the prompts with the log-probabilities that the model gives their tokens."""
    prompts = []
    for prompt in PROMPTS:
        text = prompt
        if tokenizer.chat_template:
            chat = [{"role": "user", "content": prompt}]
            text = str(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits_tv = model(input_ids=torch.tensor([ids])).logits[0].float()
        prompts.append(ReferencePrompt(text, ids, token_logprobs(logits_tv, ids)))
    return prompts


def token_logprobs(logits_tv: torch.Tensor, ids: Sequence[int]) -> list[float]:
    """Return the log-probability of each token after the first."""
    logprobs_tv = torch.log_softmax(logits_tv, -1)[:-1]
    chosen_t = logprobs_tv.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return [float(value) for value in chosen_t]


def compare(
    name: str, reference: Sequence[ReferencePrompt], actual: Sequence[Sequence[float]], tolerance: float
) -> dict[str, float]:
    """Return the differences of the log-probabilities; raises ExportDiffers if their mean is too large."""
    differences = [
        abs(expected - found)
        for prompt, logprobs in zip(reference, actual, strict=True)
        for expected, found in zip(prompt.logprobs, logprobs, strict=True)
    ]
    mean = sum(differences) / len(differences)
    # Not `mean > tolerance`: a NaN must fail too.
    if not mean <= tolerance:
        raise ExportDiffers(
            f"The log-probabilities of {name} differ from the trained model's by {mean:.3g} in the mean "
            f"of {len(differences)} tokens; its number format explains {tolerance}.",
            "Choose a format with more bits, or serve the safetensors.",
        )
    return {
        "mean": round(mean, 8),
        "max": round(max(differences), 8),
        "tokens": len(differences),
        "tolerance": tolerance,
    }
