"""The engine `sglang`, in an environment of its own; written from its source, not run by this project yet."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serving.engines.engine import (
    HEALTH_TIMEOUT_SECONDS,
    SCORE_TIMEOUT_SECONDS,
    Engine,
    EngineConfig,
    EngineRequestFailed,
    send_request,
)
from serving.engines.tokenizers import shared_tokenizer
from trainers.configs.engines import EngineKind, EngineOptions, EngineQuantization, ToolCallParser

TOOL_CALL_PARSERS = {
    ToolCallParser.qwen: "qwen25",
    ToolCallParser.qwen3_coder: "qwen3_coder",
    ToolCallParser.llama3: "llama3",
    ToolCallParser.mistral: "mistral",
    ToolCallParser.gemma4: "gemma4",
}


class SglangEngine(Engine):
    """SGLang's own server.

    It answers a name that it does not know as the base, with 200, and an adapter only as `base:adapter`.
    """

    kind = EngineKind.sglang
    default_program = ("sglang", "serve")
    load_path = "/load_lora_adapter"
    unload_path = "/unload_lora_adapter"
    auto_halves = True
    stop_seconds = 30.0

    def command(self, serve: EngineConfig) -> list[str]:
        """Raises ValueError for adapters of different templates."""
        return [
            *self.program,
            *("--model-path", serve.model, "--served-model-name", serve.served_name),
            *("--host", serve.host, "--port", str(serve.port)),
            # As for vLLM: the sampling defaults of generation_config.json are not what was trained.
            *("--sampling-defaults", "openai"),
            *_flags(serve.options),
            *_adapters(serve),
        ]

    def environment(self, serve: EngineConfig) -> dict[str, str]:
        """No hub for a local folder."""
        return {"HF_HUB_OFFLINE": "1"} if Path(serve.model).is_dir() else {}

    def request_name(self, base: str, adapter: str) -> str:
        """An adapter's own name alone would be answered by the base."""
        return f"{base}:{adapter}"

    def models(self, address: str) -> list[str]:
        """The names as requests must say them."""
        listed = send_request(f"{address}/v1/models", None, HEALTH_TIMEOUT_SECONDS)["data"]
        return [
            self.request_name(model["parent"], model["id"]) if model.get("parent") else model["id"]
            for model in listed
        ]

    def probe(self, address: str, name: str) -> None:
        """As for others, once the name is listed: what it does not list, the base would answer."""
        self._check(address, name)
        super().probe(address, name)

    def render(self, address: str, name: str, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """As for others, once the name is listed."""
        self._check(address, name)
        return super().render(address, name, messages)

    def score(self, address: str, name: str, token_ids: Sequence[int]) -> list[float]:
        """By SGLang's own endpoint, which takes the adapter's name apart from the base's."""
        self._check(address, name)
        body = {
            "input_ids": list(token_ids),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_logprob": True,
            "logprob_start_len": 0,
            "lora_path": name.partition(":")[2] or None,
        }
        answer = send_request(f"{address}/generate", body, SCORE_TIMEOUT_SECONDS)
        scored = answer["meta_info"]["input_token_logprobs"][1:]
        if [token_id for _, token_id, *_ in scored] != list(token_ids[1:]):
            raise EngineRequestFailed(f"{name!r} scored other tokens than it was given.")
        return [score for score, *_ in scored]

    def _check(self, address: str, name: str) -> None:
        known = self.models(address)
        if name not in known:
            raise EngineRequestFailed(f"{name!r} is not loaded; this engine has: {', '.join(known)}.")


def _flags(options: EngineOptions) -> list[str]:
    flags = ["--dtype", options.dtype, "--tp-size", str(options.tensor_parallel)]
    flags += ["--mem-fraction-static", str(options.memory_share)]
    if not options.prefix_caching:
        flags += ["--disable-radix-cache"]
    if options.max_model_len is not None:
        flags += ["--context-length", str(options.max_model_len)]
    if options.max_batch_size is not None:
        flags += ["--max-running-requests", str(options.max_batch_size)]
    if options.quantization is EngineQuantization.int8:
        flags += ["--torchao-config", "int8wo"]
    if options.quantization is EngineQuantization.fp8:
        flags += ["--quantization", "fp8"]
    if options.tool_call_parser is not None:
        flags += ["--tool-call-parser", TOOL_CALL_PARSERS[options.tool_call_parser]]
    if options.compact_json:
        flags += ["--constrained-json-disable-any-whitespace"]
    return flags


def _adapters(serve: EngineConfig) -> list[str]:
    """LoRA is always on; rank and modules are given, or adapters that come later may not fit."""
    options = serve.options
    flags = ["--enable-lora", "--lora-target-modules", "all"]
    flags += ["--max-loras-per-batch", str(options.max_adapters)]
    flags += ["--max-loaded-loras", str(options.max_adapters)]
    flags += ["--max-lora-rank", str(options.max_adapter_rank)]
    if serve.adapters:
        flags += ["--lora-paths", *(f"{name}={path}" for name, path in serve.adapters.items())]
    tokenizer = shared_tokenizer(serve)
    return [*flags, "--tokenizer-path", tokenizer] if tokenizer else flags
