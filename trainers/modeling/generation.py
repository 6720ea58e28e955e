"""Completions of a model for prompts, in batches: greedy or sampled."""

import torch
from transformers import GenerationConfig

from trainers.configs.training import Precision
from trainers.modeling.load import (
    ModelReference,
    forward_dtype,
    load_model,
    load_tokenizer,
    pick_precision,
)
from trainers.rendering.render import PromptCompletion, tokenize_prompt


class TextGenerator:
    """A loaded model with its tokenizer."""

    def __init__(
        self,
        reference: ModelReference,
        device: torch.device,
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        completions_per_prompt: int = 1,
    ) -> None:
        """Load the model; decoding is greedy unless a temperature is given."""
        self._device = device
        self._tokenizer = load_tokenizer(reference)
        self._model = load_model(reference, inference_dtype(device)).to(device).eval()
        self._config = self._replace_generation_config(max_new_tokens, temperature, completions_per_prompt)

    def split_into_batches(self, pairs: list[PromptCompletion], size: int) -> list[list[PromptCompletion]]:
        """Return batches of prompts of similar length, which need little padding; the order is stable."""
        ordered = sorted(pairs, key=lambda pair: (len(tokenize_prompt(pair, self._tokenizer)), pair.row))
        return [ordered[start : start + size] for start in range(0, len(ordered), size)]

    def generate(self, pairs: list[PromptCompletion]) -> list[str]:
        """Return the completions of a batch without special tokens; those of one prompt are adjacent."""
        prompts = [tokenize_prompt(pair, self._tokenizer) for pair in pairs]
        length = max(map(len, prompts))
        # Padded on the left: a completion must directly follow the last token of its prompt.
        ids_bt = torch.full((len(prompts), length), self._config.pad_token_id)
        mask_bt = torch.zeros_like(ids_bt)
        for i, prompt in enumerate(prompts):
            ids_bt[i, length - len(prompt) :] = torch.tensor(prompt)
            mask_bt[i, length - len(prompt) :] = 1
        with torch.inference_mode():
            out_bt = self._model.generate(
                input_ids=ids_bt.to(self._device),
                attention_mask=mask_bt.to(self._device),
                generation_config=self._config,
            )
        texts: list[str] = self._tokenizer.batch_decode(out_bt[:, length:], skip_special_tokens=True)
        return texts

    def _replace_generation_config(
        self, max_new_tokens: int, temperature: float, completions_per_prompt: int
    ) -> GenerationConfig:
        """Replace the model's own generation config, whose temperature or penalties must have no effect."""
        own = self._model.generation_config
        ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            num_return_sequences=completions_per_prompt,
            **(sampling if temperature else {"do_sample": False}),
            eos_token_id=sorted({end for end in [*ends, self._tokenizer.eos_token_id] if end is not None}),
            pad_token_id=self._tokenizer.pad_token_id,
            bos_token_id=own.bos_token_id,
        )
        # transformers fills what a call's config leaves open from the model's config, so replace that too.
        self._model.generation_config = GenerationConfig.from_dict(config.to_dict())
        return config


def inference_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of generation, which is what the precision `auto` is in training."""
    return forward_dtype(pick_precision(Precision.auto, device))
