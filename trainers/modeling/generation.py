"""Answers of a model to prompts, in batches: greedy, or sampled."""

import torch
from transformers import GenerationConfig

from trainers.modeling.load import ModelReference, load_model, load_tokenizer
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
        answers: int = 1,
    ) -> None:
        """Greedy by default; with a temperature, that many answers are sampled to each prompt."""
        dtype = torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
        self._device = device
        self._tokenizer = load_tokenizer(reference)
        self._model = load_model(reference, dtype).to(device).eval()
        self._config = self._own_settings(max_new_tokens, temperature, answers)

    def batches(self, pairs: list[PromptCompletion], size: int) -> list[list[PromptCompletion]]:
        """All pairs, in batches of similar length so that little is padded; the order is always the same."""
        ordered = sorted(pairs, key=lambda pair: (len(tokenize_prompt(pair, self._tokenizer)), pair.row))
        return [ordered[start : start + size] for start in range(0, len(ordered), size)]

    @torch.inference_mode()
    def answer(self, pairs: list[PromptCompletion]) -> list[str]:
        """The answers to a batch, without special tokens; those to one prompt follow each other."""
        prompts = [tokenize_prompt(pair, self._tokenizer) for pair in pairs]
        length = max(map(len, prompts))
        # Padded on the left: the last token of a prompt must stand right before its answer.
        ids_bt = torch.full((len(prompts), length), self._config.pad_token_id)
        mask_bt = torch.zeros_like(ids_bt)
        for i, prompt in enumerate(prompts):
            ids_bt[i, length - len(prompt) :] = torch.tensor(prompt)
            mask_bt[i, length - len(prompt) :] = 1
        out_bt = self._model.generate(
            input_ids=ids_bt.to(self._device),
            attention_mask=mask_bt.to(self._device),
            generation_config=self._config,
        )
        texts: list[str] = self._tokenizer.batch_decode(out_bt[:, length:], skip_special_tokens=True)
        return texts

    def _own_settings(self, max_new_tokens: int, temperature: float, answers: int) -> GenerationConfig:
        """Nothing but what is asked for: temperature or penalties of the model's own file must not count."""
        own = self._model.generation_config
        ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
        ends = {end for end in [*ends, self._tokenizer.eos_token_id] if end is not None}
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            num_return_sequences=answers,
            **(sampling if temperature else {"do_sample": False}),
            eos_token_id=sorted(ends),
            pad_token_id=self._tokenizer.pad_token_id,
            bos_token_id=own.bos_token_id,
        )
        # What a call's config leaves open, transformers fills in from the model's own.
        self._model.generation_config = GenerationConfig.from_dict(config.to_dict())
        return config
