"""Engines and their options, as an allow-list: names that differ between engines are translated."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from trainers.configs.base import Config, NonEmpty, Queue, StageConfig


class EngineKind(StrEnum):
    """Program that generates text."""

    vllm = "vllm"
    sglang = "sglang"
    hf = "hf"
    mlx = "mlx"

    @property
    def suitable_queues(self) -> tuple[Queue, ...]:
        """The queues that the engine can use, the best first."""
        return (Queue.mlx if self is EngineKind.mlx else Queue.cuda, Queue.cpu)

    @property
    def has_single_template(self) -> bool:
        """Whether one chat template renders the requests for all models of an engine.

        Models that were trained with different templates cannot share such an engine.
        """
        return self in {EngineKind.vllm, EngineKind.sglang}

    @property
    def capability(self) -> str | None:
        """What a worker announces that has the engine; hf needs only the packages of the stage."""
        return None if self is EngineKind.hf else self.value


class EngineTask(StrEnum):
    """What an engine computes."""

    generate = "generate"  # Chats, completions and responses.
    embed = "embed"  # Embeddings of texts.


class Pooling(StrEnum):
    """How the hidden states of a text's tokens become its embedding."""

    mean = "mean"
    cls = "cls"  # The state of the first token, which BERT is trained to make the text's.
    last = "last"  # The state of the last token, the only one of a decoder that has read the whole text.


class EngineQuantization(StrEnum):
    """Format with fewer bits for the weights of the base model."""

    int4 = "int4"
    int8 = "int8"
    fp8 = "fp8"
    awq = "awq"
    gptq = "gptq"


class ToolCallParser(StrEnum):
    """Family of models whose syntax of tool calls is parsed; engines have their own names for these."""

    qwen = "qwen"
    qwen3_coder = "qwen3_coder"
    llama3 = "llama3"
    llama4_pythonic = "llama4_pythonic"
    pythonic = "pythonic"
    mistral = "mistral"
    gemma4 = "gemma4"
    functiongemma = "functiongemma"
    phi4_mini = "phi4_mini"
    granite = "granite"
    glm45 = "glm45"
    lfm2 = "lfm2"
    olmo3 = "olmo3"
    seed_oss = "seed_oss"
    deepseek_v3 = "deepseek_v3"
    deepseek_v31 = "deepseek_v31"


# int8 is missing: that of vllm applies to the experts of a mixture only, so a dense model would be served in
# 16 bits, and sglang does not quantize 16-bit weights to it.
_GPU_QUANTIZATIONS = {EngineQuantization.fp8, EngineQuantization.awq, EngineQuantization.gptq}
_LOCAL_QUANTIZATIONS = {EngineQuantization.int4, EngineQuantization.int8}
SUPPORTED_QUANTIZATIONS = {
    EngineKind.vllm: _GPU_QUANTIZATIONS,
    EngineKind.sglang: _GPU_QUANTIZATIONS,
    EngineKind.hf: _LOCAL_QUANTIZATIONS,
    EngineKind.mlx: _LOCAL_QUANTIZATIONS,
}
_SGLANG_LACKS = {
    ToolCallParser.functiongemma,
    ToolCallParser.granite,
    ToolCallParser.olmo3,
    ToolCallParser.phi4_mini,
    ToolCallParser.seed_oss,
}
SUPPORTED_TOOL_CALL_PARSERS = {
    EngineKind.hf: set(ToolCallParser),
    EngineKind.mlx: set(ToolCallParser),
    EngineKind.vllm: set(ToolCallParser),
    EngineKind.sglang: set(ToolCallParser) - _SGLANG_LACKS,
}


class EngineOptions(Config):
    """Options of an engine."""

    max_model_len: int | None = Field(
        None, ge=16, description="Maximum tokens of prompt and completion together. Defaults to the model's."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Number format of weights and activations; `auto` is the format of the model."
    )
    quantization: EngineQuantization | None = Field(
        None,
        description="`int4`, `int8` (hf and mlx) and `fp8` (vllm and sglang) quantize on loading; `awq` and "
        "`gptq` name the format of the stored weights.",
    )
    tensor_parallel: int = Field(
        1, ge=1, le=64, description="Number of GPUs that share one copy of the model."
    )
    memory_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of a GPU's memory that vllm and sglang may use; by default 0.9 on vllm, and what "
        "sglang computes for the card.",
    )
    cpu_cache_gib: int = Field(
        2, ge=1, le=1024, description="KV cache of vllm on a CPU, in GiB; memory_share has no effect there."
    )
    prefix_caching: bool = Field(True, description="Reuse the KV cache of common prefixes of prompts.")
    max_batch_size: int | None = Field(
        None, ge=1, le=4096, description="Maximum number of completions decoded at once."
    )
    max_adapters: int = Field(
        8,
        ge=0,
        le=256,
        description="Maximum number of adapters that the engine has loaded at once. With 0, vllm and sglang "
        "reserve no memory for adapters and serve the base faster.",
    )
    max_adapter_rank: int = Field(64, ge=1, le=512, description="Maximum LoRA rank of an adapter.")
    tool_call_parser: ToolCallParser | None = Field(
        None,
        description="Family whose tool calls are parsed. Without it, vllm, hf and mlx take the family from "
        "the chat template.",
    )
    compact_json: bool = Field(
        True,
        description="Forbid white space between the parts of structured JSON output, but for one space after "
        "a comma or colon on hf and mlx; a small model may otherwise generate white space up to the limit.",
    )
    sleep_mode: bool = Field(
        False,
        description="Let vllm free its GPU memory while idle; enables its development endpoints on loopback.",
    )


class EngineChoice(Config):
    """An engine and its options, for configs that start one."""

    engine: EngineKind = Field(EngineKind.hf, description="Engine to start.")
    options: EngineOptions = Field(EngineOptions(), description="Options of the engine.")

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        options, engine = self.options, self.engine
        check_quantization(engine, options)
        parsers = SUPPORTED_TOOL_CALL_PARSERS[engine]
        _check_supported("tool_call_parser", options.tool_call_parser, parsers, engine)
        if options.tensor_parallel > 1 and engine in (EngineKind.hf, EngineKind.mlx):
            raise ValueError(f"options.tensor_parallel is for vllm and sglang; {engine} runs on one device")
        if options.sleep_mode and engine is not EngineKind.vllm:
            raise ValueError(f"options.sleep_mode is for vllm; {engine} does not support it")
        return self


def check_quantization(engine: EngineKind, options: EngineOptions) -> None:
    """Raise ValueError for a quantization that the engine does not apply."""
    _check_supported("quantization", options.quantization, SUPPORTED_QUANTIZATIONS[engine], engine)


# Options that the other engines do not read.
_OPTIONS_OF_ENGINES = {
    "memory_share": (EngineKind.vllm, EngineKind.sglang),
    "prefix_caching": (EngineKind.vllm, EngineKind.sglang),
    "cpu_cache_gib": (EngineKind.vllm,),
}


def list_unread_options(engine: EngineKind) -> Iterable[tuple[str, str]]:
    """Yield each option that the engine does not read, and what it would need."""
    for option, engines in _OPTIONS_OF_ENGINES.items():
        if engine not in engines:
            yield option, f"{engine} does not have it; set engine to {' or '.join(engines)}"


# Options that only change how text is generated.
GENERATION_OPTIONS = ("tool_call_parser", "compact_json", "max_adapters", "max_adapter_rank", "sleep_mode")


def check_task(
    engine: EngineKind,
    task: EngineTask,
    pooling: Pooling | None,
    options: EngineOptions,
    adapters: Collection[str] = (),
) -> None:
    """Raise ValueError for what does not fit the task of an engine."""
    if task is EngineTask.generate:
        if pooling is not None:
            raise ValueError("pooling is for an embedding model: set task to embed")
        if (count := len(adapters)) > options.max_adapters:
            raise ValueError(f"{count} adapters are more than options.max_adapters={options.max_adapters}")
        return
    if engine is EngineKind.mlx:
        raise ValueError("mlx does not compute embeddings: use hf or vllm for the task embed")
    if pooling is not None and engine is EngineKind.sglang:
        raise ValueError("sglang takes no pooling: use hf or vllm for a model whose files have none")
    if adapters:
        raise ValueError("adapters cannot be applied to an embedding model: merge them into it first")
    defaults = EngineOptions()
    for name in GENERATION_OPTIONS:
        if getattr(options, name) != getattr(defaults, name):
            raise ValueError(f"options.{name} has no effect on embeddings: leave it out")
    if options.quantization is not None and engine is EngineKind.hf:
        raise ValueError("options.quantization is not supported for embeddings by hf: leave it out")


class RunningEngine(Config):
    """An engine that is running, and the name of a model on it."""

    url: NonEmpty = Field(description="Root URL, such as `http://127.0.0.1:8001`, without `/v1`.")
    model: NonEmpty = Field(description="Name of the model in requests.")
    hardware: NonEmpty | None = Field(
        None, description="What it runs on, for the record; the CPU of this host by default."
    )


class EngineClientConfig(StageConfig, EngineChoice):
    """Fields of a stage whose program sends requests to engines, which the worker starts for a job."""

    completions_file: ClassVar[str]
    """File in the run directory to which the program appends what must not be generated again.

    Its name may contain `*`, if what determines the completions is a part of it.
    """

    @property
    def engine_models(self) -> dict[str, Any]:
        """The models that an engine must serve, as references, by their names in the stage."""
        raise NotImplementedError

    def with_engines(self, engines: Mapping[str, RunningEngine], pending: Sequence[str] = ()) -> Self:
        """Return the config for a program whose models in `engines` are served; those of `pending` later."""
        raise NotImplementedError

    @property
    def uses_engine(self) -> bool:
        """Whether engines get the devices of the run, and not the program."""
        return True

    @property
    def device_count(self) -> int:
        """Devices of the engine."""
        return self.options.tensor_parallel if self.engine_models else 0

    @property
    def capability(self) -> str | None:
        """The engine."""
        return self.engine.capability if self.engine_models else None

    @property
    def suitable_queues(self) -> tuple[Queue, ...]:
        """The queues of the engine."""
        return self.engine.suitable_queues if self.engine_models else super().suitable_queues


def _check_supported(
    option: str, value: StrEnum | None, supported: Collection[StrEnum], engine: EngineKind
) -> None:
    if value is not None and value not in supported:
        names = ", ".join(sorted(supported))
        raise ValueError(f"options.{option} '{value}' is not supported by {engine}; choose one of {names}")


def join_capabilities(capabilities: Iterable[str | None]) -> str | None:
    """Return what a run needs that needs several capabilities: `comet+vllm`; None if it needs none."""
    return "+".join(sorted({one for one in capabilities if one is not None})) or None


def split_capabilities(needed: str | None) -> frozenset[str]:
    """Return the capabilities that `join_capabilities` joined."""
    return frozenset(needed.split("+")) if needed else frozenset()
