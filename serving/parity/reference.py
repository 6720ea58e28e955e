"""The model as it was trained: transformers and PEFT, with the chat template that lies beside its weights."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from peft import PeftModel
from transformers import GenerationConfig

from serving.parity.prompts import Chat
from trainers.modeling.load import ModelReference, load_model, load_tokenizer, template_sha256


@dataclass(frozen=True)
class ReferenceOutput:
    """What the trained model makes of one chat.

    `prompt_ids` (P tokens) is the rendered chat and `answer_ids` (A tokens) the greedy answer, with the token
    that ends it, unless it is as long as it may be. `logprobs` holds P + A - 1 values: of each token but the
    first, given those before it. `base_logprobs` are the same without the adapter, where there is one.
    `answer_AV` are log-probabilities of the whole vocabulary at each token of the answer.
    """

    chat: Chat
    prompt_ids: list[int]
    answer_ids: list[int]
    answer: str
    max_new_tokens: int
    logprobs: list[float]
    base_logprobs: list[float] | None
    answer_AV: torch.Tensor  # noqa: N815

    @property
    def ids(self) -> list[int]:
        return self.prompt_ids + self.answer_ids


class ReferenceModel:
    """The loaded model in fp32 on the CPU, where its arithmetic depends on no kernel."""

    def __init__(self, reference: ModelReference) -> None:
        self.tokenizer: Any = load_tokenizer(reference)
        self.model: Any = load_model(reference, torch.float32).eval()

    @property
    def template_sha256(self) -> str:
        """Hash of the chat template."""
        return template_sha256(self.tokenizer)

    @property
    def ends(self) -> set[int]:
        """Tokens that end a turn."""
        own = self.model.generation_config.eos_token_id
        listed = [*(own if isinstance(own, list) else [own]), self.tokenizer.eos_token_id]
        return {end for end in listed if end is not None}

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def expect(self, chat: Chat, max_new_tokens: int) -> ReferenceOutput | None:
        """The chat rendered, answered and scored; None when the template refuses it."""
        try:
            prompt_ids = self._render(chat)
        except (TemplateError, TypeError, ValueError):
            return None
        answer_ids = self._answer(prompt_ids, max_new_tokens)
        ids, first = prompt_ids + answer_ids, len(prompt_ids) - 1
        logprobs_TV = self._logprobs(ids)  # noqa: N806
        base_TV = self._logprobs(ids, adapted=False) if isinstance(self.model, PeftModel) else None  # noqa: N806
        return ReferenceOutput(
            chat=chat,
            prompt_ids=prompt_ids,
            answer_ids=answer_ids,
            answer=self.tokenizer.decode(answer_ids, skip_special_tokens=True),
            max_new_tokens=max_new_tokens,
            logprobs=_of(ids, logprobs_TV),
            base_logprobs=None if base_TV is None else _of(ids, base_TV),
            answer_AV=logprobs_TV[first:],
        )

    def text(self, token: int) -> str:
        """A token as a person can read it."""
        return str(self.tokenizer.convert_ids_to_tokens(token))

    def _render(self, chat: Chat) -> list[int]:
        encoded = self.tokenizer.apply_chat_template(
            chat, tokenize=True, add_generation_prompt=True, return_dict=True
        )
        return list(encoded["input_ids"])

    def _answer(self, prompt_ids: list[int], max_new_tokens: int) -> list[int]:
        own, ends = self.model.generation_config, sorted(self.ends)
        greedy = GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=ends[0]
        )
        # What a call's config leaves open, transformers fills in from the model's own: penalties, for one.
        self.model.generation_config = GenerationConfig.from_dict(greedy.to_dict())
        ids_1T = torch.tensor([prompt_ids])  # noqa: N806
        out_1T = self.model.generate(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T))  # noqa: N806
        self.model.generation_config = own
        return list(out_1T[0, len(prompt_ids) :].tolist())

    def _logprobs(self, ids: list[int], *, adapted: bool = True) -> torch.Tensor:
        """Shape (T - 1, V): what each token but the first was predicted from, in fp32."""
        with nullcontext() if adapted else self.model.disable_adapter():
            logits_TV = self.model(input_ids=torch.tensor([ids])).logits[0, :-1]  # noqa: N806
        return torch.log_softmax(logits_TV.float(), dim=-1)


def _of(ids: list[int], logprobs_TV: torch.Tensor) -> list[float]:  # noqa: N803
    following_T1 = torch.tensor(ids[1:])[:, None]  # noqa: N806
    return list(logprobs_TV.gather(1, following_T1)[:, 0].tolist())
