"""The model of a run as lm-eval calls it: loaded by us and verified, or behind an engine."""

import hashlib
import json
import logging
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import torch
from lm_eval.api.model import LM
from lm_eval.models import api_models
from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from transformers import GenerationConfig, PreTrainedTokenizerBase

from trainers.configs.base import AdaptedModel, ModelRef
from trainers.configs.references import get_base_model
from trainers.configs.stages.harness.lm_eval import HarnessBackend, LmEvalConfig
from trainers.modeling.generation import inference_dtype
from trainers.modeling.load import load_config, load_model, load_tokenizer, pick_device, template_sha256
from trainers.modeling.model_source import open_adapter, open_base
from trainers.runtime.errors import ConfigInvalid
from trainers.runtime.verified_files import hash_files

DEFAULT_LENGTH = 2048
REQUEST_TIMEOUT_SECONDS = 3600
MAX_RETRIES = 3
# Of requests for log-probabilities. A prompt of 4,096 tokens has 0.5 MB of them in JSON.
PROMPTS_PER_REQUEST = 16
# Of all requests at once: engines refuse more than they can hold.
MAX_PROMPTS = 512
# What lm-eval puts in place of a response without content, by default an empty text.
NO_RESPONSE = "[null content returned by the API]"
# What a connection of aiohttp to an engine can raise.
ENGINE_ERRORS = (aiohttp.ClientError, TimeoutError)

logger = logging.getLogger("trainers")


@dataclass(frozen=True)
class ModelIdentity:
    """What determines a model's responses: its weights and how they are computed."""

    model_sha256: str
    adapter_sha256: str | None
    dtype: str
    engine: str
    template_sha256: str | None

    @property
    def file_name(self) -> str:
        """The name of the cache of its responses."""
        versions = f"lm_eval-{version('lm-eval')}-transformers-{version('transformers')}"
        adapter = self.adapter_sha256[:16] if self.adapter_sha256 else "none"
        template = self.template_sha256[:8] if self.template_sha256 else "none"
        parts = [self.model_sha256[:16], adapter, self.dtype, self.engine, template, versions]
        return f"responses-{'-'.join(parts)}.jsonl"


@dataclass(frozen=True)
class HarnessModel:
    """A model of lm-eval, and its identity."""

    lm: LM
    identity: ModelIdentity


def open_model(config: LmEvalConfig) -> HarnessModel:
    """Load the model, or connect to its engine.

    Raises the errors of `load_model`, and ConfigInvalid without the address of an engine.
    """
    if config.backend is HarnessBackend.chat_completions:
        return HarnessModel(_open_chat(config), _identify(config, None, config.options.dtype))
    tokenizer = load_tokenizer(config.model)
    if config.chat_template and not tokenizer.chat_template:
        raise ConfigInvalid(
            "chat_template is true, but the model has no chat template.", "Set chat_template to false."
        )
    lm, dtype = _OPENERS[config.backend](config, tokenizer)
    return HarnessModel(lm, _identify(config, tokenizer, dtype))


def _open_hf(config: LmEvalConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[LM, str]:
    device = pick_device(config.queue)
    dtype = _pick_dtype(config, device)
    model = load_model(config.model, dtype).to(device).eval()
    # A temperature or a penalty of the model's own generation config would change greedy responses.
    own = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    lm = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=config.batch_size,
        max_length=_context_length(config),
        add_bos_token=_adds_bos(config, tokenizer),
    )
    return lm, str(dtype).removeprefix("torch.")


def _open_completions(config: LmEvalConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[LM, str]:
    lm = _Completions(
        **_engine_arguments(config, "completions"),
        tokenizer_backend=None,
        max_length=_context_length(config),
        add_bos_token=_adds_bos(config, tokenizer),
    )
    # lm-eval would load it by its name; this one is verified, and has a template and a padding token.
    lm.tokenizer, lm.tokenizer_backend, lm.tokenized_requests = tokenizer, "huggingface", True
    return lm, config.options.dtype


class _Completions(LocalCompletionsAPI):  # type: ignore[misc]
    """The client of an engine: one prompt for each request that generates, several for one that scores.

    A request costs milliseconds of Python on both sides, which a short prompt that is only read does not.
    """

    def _loglikelihood_tokens(self, requests: Any, **options: Any) -> list[tuple[float, bool]]:
        self._batch_size = max(1, min(PROMPTS_PER_REQUEST, MAX_PROMPTS // self._concurrent))
        try:
            scored: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, **options)
            return scored
        finally:
            self._batch_size = 1


def _open_chat(config: LmEvalConfig) -> LM:
    return LocalChatCompletion(**_engine_arguments(config, "chat/completions"))


_OPENERS = {
    HarnessBackend.hf: _open_hf,
    HarnessBackend.completions: _open_completions,
}


def _engine_arguments(config: LmEvalConfig, path: str) -> dict[str, Any]:
    if config.engine_url is None:
        raise ConfigInvalid(
            f"engine_url is missing: the backend {config.backend} sends requests to a running engine.",
            "Start one with `python -m serving --model … --port 8001`, and set engine_url: http://127.0.0.1:8001.",
        )
    api_models.LMEVAL_MODEL_NONE_ANSWER_PLACEHOLDER = NO_RESPONSE
    return {
        "base_url": f"{config.engine_url.rstrip('/')}/v1/{path}",
        "model": config.engine_model or get_base_model(config.model),
        # With 1, lm-eval uses another client, to which proxies of the environment apply.
        "num_concurrent": max(2, config.concurrency),
        "max_retries": MAX_RETRIES,
        "timeout": REQUEST_TIMEOUT_SECONDS,
        "seed": config.seed,
    }


def _adds_bos(config: LmEvalConfig, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether prompts begin with the tokenizer's first token: a chat template writes its own."""
    first = tokenizer("a").input_ids[:1]
    return not config.chat_template and first == [tokenizer.bos_token_id]


def _context_length(config: LmEvalConfig) -> int:
    own = (
        getattr(load_config(get_base_model(config.model)), "max_position_embeddings", None) or DEFAULT_LENGTH
    )
    return min(own, config.options.max_model_len or own)


def _pick_dtype(config: LmEvalConfig, device: torch.device) -> torch.dtype:
    if config.options.dtype != "auto":
        dtype: torch.dtype = getattr(torch, config.options.dtype)
        return dtype
    return inference_dtype(device)


def _identify(config: LmEvalConfig, tokenizer: PreTrainedTokenizerBase | None, dtype: str) -> ModelIdentity:
    adapter = config.model.adapter if isinstance(config.model, AdaptedModel) else None
    engine = config.engine if config.uses_engine else config.backend
    template = template_sha256(tokenizer) if tokenizer is not None and config.chat_template else None
    return ModelIdentity(
        model_sha256=_hash_model(config.model, config),
        adapter_sha256=_hash_folder(Path(open_adapter(adapter))) if adapter else None,
        dtype=dtype,
        engine=f"{config.backend}-{engine}",
        template_sha256=template,
    )


def _hash_model(model: ModelRef, config: LmEvalConfig) -> str:
    base = get_base_model(model)
    if config.backend is HarnessBackend.chat_completions and not Path(base).is_dir():
        # A model of another server: its name is all that is known of it.
        return hashlib.sha256(json.dumps([base, config.engine_url, config.engine_model]).encode()).hexdigest()
    return _hash_folder(Path(open_base(base)))


def _hash_folder(folder: Path) -> str:
    """Return the hash of the names and contents of the files that a loader sees."""
    return hash_files(folder, (path for path in folder.rglob("*") if path.is_file()))
