"""The model as it was trained: transformers and PEFT, with the chat template saved with its weights.

Tensor suffixes: T tokens of prompt and completion, A tokens of the completion, V vocabulary.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from peft import PeftModel
from transformers import GenerationConfig

from serving.parity.prompts import Chat
from trainers.modeling.load import ModelReference, load_model, load_tokenizer, template_sha256
from trainers.rendering.plain_text import TemplateMissing
from trainers.rendering.render import PromptCompletion, tokenize_prompt


@dataclass(frozen=True)
class ReferenceOutput:
    """The trained model's prompt, completion and scores of one chat.

    Attributes:
        chat: The messages, or the text of the prompt for a model without a chat template.
        prompt_ids: The rendered chat.
        completion_ids: The greedy completion, including its end token unless it has the maximum length.
        completion: Its text.
        max_new_tokens: The maximum length.
        logprobs: The log-probability of each token but the first, given those before it (T - 1 values).
        base_logprobs: The same without the adapter; None for whole weights.
        completion_AV: Log-probabilities of the whole vocabulary at each token of the completion.
    """

    chat: Chat | str
    prompt_ids: list[int]
    completion_ids: list[int]
    completion: str
    max_new_tokens: int
    logprobs: list[float]
    base_logprobs: list[float] | None
    completion_AV: torch.Tensor  # noqa: N815

    @property
    def ids(self) -> list[int]:
        """Token ids of prompt and completion."""
        return self.prompt_ids + self.completion_ids


class ReferenceModel:
    """The loaded model in fp32 on the CPU, where results do not depend on a kernel."""

    def __init__(self, reference: ModelReference) -> None:
        self.tokenizer: Any = load_tokenizer(reference)
        self.model: Any = load_model(reference, torch.float32).eval()

    @property
    def template_sha256(self) -> str | None:
        """Hash of the chat template; None without one."""
        return template_sha256(self.tokenizer)

    @property
    def end_ids(self) -> set[int]:
        """Tokens that end a turn."""
        configured = self.model.generation_config.eos_token_id
        ids = configured if isinstance(configured, list) else [configured]
        return {end for end in (*ids, self.tokenizer.eos_token_id) if end is not None}

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def run(self, chat: Chat, max_new_tokens: int) -> ReferenceOutput | None:
        """Render, complete and score a chat; return None if the template rejects it."""
        try:
            prompt_ids = self._render(chat)
        except (TemplateError, TypeError, ValueError, TemplateMissing):
            return None
        completion_ids = self._complete(prompt_ids, max_new_tokens)
        ids, first = prompt_ids + completion_ids, len(prompt_ids) - 1
        logprobs_TV = self._logprobs(ids)  # noqa: N806
        base_TV = self._logprobs(ids, adapted=False) if isinstance(self.model, PeftModel) else None  # noqa: N806
        return ReferenceOutput(
            # Without a template, the engine gets the same text.
            chat=chat[0]["content"] if self.tokenizer.chat_template is None else chat,
            prompt_ids=prompt_ids,
            completion_ids=completion_ids,
            completion=self.tokenizer.decode(completion_ids, skip_special_tokens=True),
            max_new_tokens=max_new_tokens,
            logprobs=_token_logprobs(ids, logprobs_TV),
            base_logprobs=None if base_TV is None else _token_logprobs(ids, base_TV),
            completion_AV=logprobs_TV[first:],
        )

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def score(self, ids: list[int]) -> list[float]:
        """Return the log-probability of each token but the first."""
        return _token_logprobs(ids, self._logprobs(ids))

    def token_text(self, token: int) -> str:
        """Return the token's readable form in the vocabulary."""
        return str(self.tokenizer.convert_ids_to_tokens(token))

    def _render(self, chat: Chat) -> list[int]:
        return tokenize_prompt(PromptCompletion(0, chat, [], None), self.tokenizer)

    def _complete(self, prompt_ids: list[int], max_new_tokens: int) -> list[int]:
        own_config, end_ids = self.model.generation_config, sorted(self.end_ids)
        greedy = GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=end_ids, pad_token_id=end_ids[0]
        )
        # transformers fills what a call's config leaves open, such as penalties, from the model's own config.
        self.model.generation_config = GenerationConfig.from_dict(greedy.to_dict())
        ids_1T = torch.tensor([prompt_ids])  # noqa: N806
        output_1T = self.model.generate(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T))  # noqa: N806
        self.model.generation_config = own_config
        return list(output_1T[0, len(prompt_ids) :].tolist())

    def _logprobs(self, ids: list[int], *, adapted: bool = True) -> torch.Tensor:
        """Return log-probabilities (T - 1, V) in fp32 at each token but the first."""
        with nullcontext() if adapted else self.model.disable_adapter():
            logits_TV = self.model(input_ids=torch.tensor([ids])).logits[0, :-1]  # noqa: N806
        return torch.log_softmax(logits_TV.float(), dim=-1)


def _token_logprobs(ids: list[int], logprobs_TV: torch.Tensor) -> list[float]:  # noqa: N803
    next_T1 = torch.tensor(ids[1:])[:, None]  # noqa: N806
    return list(logprobs_TV.gather(1, next_T1)[:, 0].tolist())
