"""The engine `sglang`, in an environment of its own; written from its source (0.5.23), not run by us yet."""

from collections.abc import Sequence

from serving.engines.engine import (
    HEALTH_TIMEOUT_SECONDS,
    PROBE_TIMEOUT_SECONDS,
    SCORE_TIMEOUT_SECONDS,
    Engine,
    EngineConfig,
    EnginePrompt,
    EngineRequestFailed,
    send_request,
)
from serving.engines.tokenizers import shared_tokenizer
from trainers.configs.engines import (
    EngineKind,
    EngineOptions,
    EngineQuantization,
    EngineTask,
    ToolCallParser,
    check_quantization,
)

# Other names are SGLang's own.
TOOL_CALL_PARSERS = {
    ToolCallParser.qwen: "qwen25",
    ToolCallParser.llama4_pythonic: "pythonic",
    ToolCallParser.deepseek_v3: "deepseekv3",
    ToolCallParser.deepseek_v31: "deepseekv31",
}


class SglangEngine(Engine):
    """SGLang's server.

    It serves an unknown model name with the base and status 200, and an adapter only as `base:adapter`.
    """

    kind = EngineKind.sglang
    default_program = ("sglang", "serve")
    load_path = "/load_lora_adapter"
    unload_path = "/unload_lora_adapter"
    auto_dtype_is_16_bit = True
    stop_seconds = 30.0

    def command(self, config: EngineConfig) -> list[str]:
        """Return the command; raise ValueError for options or templates that cannot be used."""
        return [
            *self.program,
            *("--model-path", config.model, "--served-model-name", config.served_name),
            *("--host", config.host, "--port", str(config.port)),
            *_option_flags(config.options),
            *(["--is-embedding"] if config.task is EngineTask.embed else _generation_flags(config)),
        ]

    def request_name(self, base: str, adapter: str) -> str:
        """Return `base:adapter`: the base would serve the adapter's name alone."""
        return f"{base}:{adapter}"

    def list_models(self, address: str) -> list[str]:
        """Return the names that requests must use."""
        models = send_request(f"{address}/v1/models", None, HEALTH_TIMEOUT_SECONDS)["data"]
        return [
            self.request_name(model["parent"], model["id"]) if model.get("parent") else model["id"]
            for model in models
        ]

    def probe(
        self,
        address: str,
        name: str,
        timeout_seconds: float = PROBE_TIMEOUT_SECONDS,
        task: EngineTask = EngineTask.generate,
    ) -> None:
        """Check that the name is listed, since the base serves all others; then send it a request."""
        self._check_is_listed(address, name)
        super().probe(address, name, timeout_seconds, task)

    def render(self, address: str, name: str, prompt: EnginePrompt) -> list[int]:
        """Check that the name is listed, then render the chat or text."""
        self._check_is_listed(address, name)
        return super().render(address, name, prompt)

    def score(self, address: str, name: str, token_ids: Sequence[int]) -> list[float]:
        """Score with SGLang's native endpoint, where the adapter's name is a field of its own."""
        self._check_is_listed(address, name)
        body = {
            "input_ids": list(token_ids),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_logprob": True,
            "logprob_start_len": 0,
            "lora_path": name.partition(":")[2] or None,
        }
        response = send_request(f"{address}/generate", body, SCORE_TIMEOUT_SECONDS)
        scored = response["meta_info"]["input_token_logprobs"][1:]
        if [token_id for _, token_id, *_ in scored] != list(token_ids[1:]):
            raise EngineRequestFailed(f"The engine scored other tokens of {name!r} than those it was sent.")
        return [score for score, *_ in scored]

    def _check_is_listed(self, address: str, name: str) -> None:
        served = self.list_models(address)
        if name not in served:
            raise EngineRequestFailed(f"{name!r} is not loaded; this engine serves: {', '.join(served)}.")


def _option_flags(options: EngineOptions) -> list[str]:
    # A deployment that was stored by an earlier version may have int8.
    check_quantization(EngineKind.sglang, options)
    flags = ["--dtype", options.dtype, "--tp-size", str(options.tensor_parallel)]
    if options.memory_share is not None:
        # Without it, sglang leaves room for the CUDA graphs and activations of this card and model.
        flags += ["--mem-fraction-static", str(options.memory_share)]
    if not options.prefix_caching:
        flags += ["--disable-radix-cache"]
    if options.max_model_len is not None:
        flags += ["--context-length", str(options.max_model_len)]
    if options.max_batch_size is not None:
        flags += ["--max-running-requests", str(options.max_batch_size)]
    if options.quantization is EngineQuantization.fp8:
        flags += ["--quantization", "fp8"]
    return flags


def _generation_flags(config: EngineConfig) -> list[str]:
    options = config.options
    # As for vLLM: the model was trained without the sampling defaults of generation_config.json.
    flags = ["--sampling-defaults", "openai"]
    if options.tool_call_parser is not None:
        flags += [
            "--tool-call-parser",
            TOOL_CALL_PARSERS.get(options.tool_call_parser, options.tool_call_parser),
        ]
    if options.compact_json:
        flags += ["--constrained-json-disable-any-whitespace"]
    if options.max_adapters:
        # Without rank and modules, adapters that are loaded later may not fit.
        flags += ["--enable-lora", "--lora-target-modules", "all"]
        flags += ["--max-loras-per-batch", str(options.max_adapters)]
        flags += ["--max-loaded-loras", str(options.max_adapters)]
        flags += ["--max-lora-rank", str(options.max_adapter_rank)]
    if config.adapters:
        flags += ["--lora-paths", *(f"{name}={path}" for name, path in config.adapters.items())]
    tokenizer = shared_tokenizer(config)
    return [*flags, "--tokenizer-path", tokenizer] if tokenizer else flags
