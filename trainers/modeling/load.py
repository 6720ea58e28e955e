"""Models, adapters and tokenizers from a folder or a hub id; a failure names its cause.

A loader of a library gets the absolute path of a verified folder and never a name. Weights are safetensors
only, and no code of a model's author runs.
"""

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import constants
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from trainers.configs.base import AdaptedModel, Queue, StageOutput
from trainers.configs.references import get_base_model
from trainers.configs.training import ChatTemplateName, Precision
from trainers.mlx.adapter_format import MLX_WEIGHTS
from trainers.modeling import families
from trainers.modeling.model_config import is_quantized_by_mlx
from trainers.modeling.model_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BaseModelNotFound,
    ModelRefused,
)
from trainers.modeling.model_source import open_adapter, open_base
from trainers.modeling.multimodal.architectures import auto_class, text_architecture
from trainers.modeling.quantization.nf4 import disable_avx512_repacking
from trainers.rendering.template_proof import locate_errors, prove_template
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import DeviceUnavailable, ProgramError, has_disk_full_cause

ModelReference = str | StageOutput | AdaptedModel
Placement = Literal["cpu", "gpu", "meta"]

# Of the errors with which transformers refuses a model type, and one that does not complete text.
UNKNOWN_ARCHITECTURE = ("does not recognize this architecture", "Unrecognized configuration class")

logger = logging.getLogger("trainers")


class AdapterUnreadable(ProgramError):
    code = ErrorCode.adapter_unreadable


class TemplateUnsuitable(ProgramError):
    code = ErrorCode.template_unsuitable


class ModelUnsupported(ProgramError):
    """A model that this version cannot train or serve, whatever the settings."""

    code = ErrorCode.model_unsupported


class TokenizerIncomplete(ModelUnsupported):
    """A tokenizer without a token that ends or pads a text."""


def pick_device(queue: Queue | None) -> torch.device:
    """Return the CUDA device of this process if there is one, else the CPU; raises DeviceUnavailable."""
    if queue is Queue.cuda and not torch.cuda.is_available():
        raise DeviceUnavailable(
            "The stage's queue is cuda, but torch finds no CUDA device on this host.",
            "Run the stage on a host with a GPU, or set its queue to cpu.",
        )
    return torch.device("cuda" if queue is not Queue.cpu and torch.cuda.is_available() else "cpu")


def pick_precision(precision: Precision, device: torch.device) -> Precision:
    """Resolve `auto`; raises DeviceUnavailable if the device does not compute in the named precision.

    A GPU before Ampere, such as a T4 or a V100, emulates bf16 at a fraction of its speed.
    """
    has_bf16, is_cuda = computes_bf16(device), device.type == "cuda"
    if precision is Precision.auto:
        return Precision.bf16 if has_bf16 else Precision.fp16 if is_cuda else Precision.fp32
    if precision is not Precision.fp32 and not (has_bf16 or (is_cuda and precision is Precision.fp16)):
        name = torch.cuda.get_device_name(device) if is_cuda else device.type
        raise DeviceUnavailable(
            f"precision is {precision}, which the device {name} of this host does not compute.",
            f"Set precision to auto, which is {'fp16' if is_cuda else 'fp32'} here, or use another GPU.",
        )
    return precision


def computes_bf16(device: torch.device) -> bool:
    """Return whether the device computes in bf16 itself; torch counts emulation as support by default."""
    return bool(device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))


def load_tokenizer(
    reference: ModelReference, template: ChatTemplateName | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer, from the adapter's folder if it contains one, and complete it.

    It always has a pad token. Its chat template is the named one, its own, or that of its family; with none
    of them, rows are rendered as text. Raises BaseModelNotFound, TemplateUnsuitable for a named template
    whose tokens it lacks, ChatTemplateError for a template that cannot be used, or TokenizerIncomplete.
    """
    source = get_base_model(reference)
    if isinstance(reference, AdaptedModel) and (Path(reference.adapter) / "tokenizer_config.json").is_file():
        source = reference.adapter
        folder = _open_adapter(source)
    else:
        folder = open_base(source)
    with _model_errors(source):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if template is not None:
        _set_template(tokenizer, template, source)
    elif tokenizer.chat_template:
        # Rows are rendered in this process, thousands a second, so the template is tried in a child first.
        with locate_errors(source):
            prove_template(tokenizer.chat_template, tokenizer.special_tokens_map)
    else:
        architecture = text_architecture(load_config(get_base_model(reference)))
        family = families.set_chat_template(tokenizer, architecture)
        found = f"using that of the family {family.name}" if family else "rows are rendered as text"
        logger.info("%s has no chat template; %s.", source, found)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise TokenizerIncomplete(
                f"The tokenizer of {source} has neither eos_token nor pad_token, so rows of unequal length "
                "cannot be batched.",
                "Set eos_token in its tokenizer_config.json to the token that ends a turn.",
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _set_template(tokenizer: PreTrainedTokenizerBase, name: ChatTemplateName, source: str) -> None:
    if missing := families.set_named_template(tokenizer, name):
        suitable = ", ".join(families.suitable_templates(tokenizer))
        raise TemplateUnsuitable(
            f"The template {name} needs the tokens {', '.join(missing)}, which {source} does not have.",
            f"Choose one of the templates that suit it: {suitable}.",
        )


def load_config(base: str) -> PreTrainedConfig:
    """Load the config of a base model; raises the errors of `open_base`."""
    folder = open_base(base)
    with _model_errors(base):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def check_torch_format(base: str, config: PreTrainedConfig) -> None:
    """Raise ModelUnsupported for weights in the format of mlx-lm, which only MLX reads."""
    if is_quantized_by_mlx(config):
        raise ModelUnsupported(
            f"The model {base} is quantized in the format of mlx-lm, which torch does not read.",
            "Use the backend or the engine mlx, or name the original model. An adapter trained on it belongs "
            "to the base that its run has published (`dequantized_base`).",
        )


def load_generation_config(base: str) -> GenerationConfig | None:
    """Load the generation config of a base model, if it has one; raises the errors of `open_base`."""
    folder = open_base(base)
    try:
        return GenerationConfig.from_pretrained(folder)
    except OSError:
        return None


def load_base(
    base: str,
    dtype: torch.dtype,
    attention: str | None = None,
    quantization: BitsAndBytesConfig | None = None,
    placement: Placement = "cpu",
) -> PreTrainedModel:
    """Load the base model; a quantized one onto this process's device in any case.

    On torch's `meta` device no weight is read. Raises the errors of `open_base`.
    """
    folder = open_base(base)
    check_torch_format(base, model_config := load_config(base))
    options: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    if quantization is not None:
        options["quantization_config"] = quantization
    if placement == "meta":
        options["device_map"] = {"": "meta"}
    elif quantization is not None or placement == "gpu":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
        options["device_map"] = {"": device}
    with _model_errors(base):
        model = auto_class(model_config).from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, **options
        )
    # Without `quantization` too: the files of a folder may already be quantized.
    disable_avx512_repacking(model)
    return model


def load_model(
    reference: ModelReference, dtype: torch.dtype, is_trainable: bool = False, **options: Any
) -> PreTrainedModel | PeftModel:
    """Load the model and its adapter, if it has one; `options` are those of `load_base`.

    Raises BaseModelNotFound or AdapterUnreadable.
    """
    if not isinstance(reference, AdaptedModel):
        return load_base(get_base_model(reference), dtype, **options)
    check_adapter_folder(Path(reference.adapter))
    return load_adapter(load_base(reference.base, dtype, **options), reference, is_trainable)


def load_adapter(model: PreTrainedModel, reference: AdaptedModel, is_trainable: bool) -> PeftModel:
    """Load an adapter onto its base; raises AdapterUnreadable."""
    adapter = check_adapter_folder(Path(reference.adapter))
    with warnings.catch_warnings():
        # PEFT only warns if parameter names do not match, and would continue with an adapter without effect.
        warnings.filterwarnings("error", "Found missing adapter keys", UserWarning)
        try:
            return PeftModel.from_pretrained(model, str(adapter), is_trainable=is_trainable)
        except (ValueError, RuntimeError, KeyError, TypeError, UserWarning) as error:
            raise _unreadable(reference.adapter, f"it does not fit {reference.base}: {error}") from error


def template_sha256(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the hash of the chat template, which shows whether a model is served with the one it learned.

    None for a model without a template.
    """
    template = tokenizer.chat_template
    if template is None:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def forward_dtype(precision: Precision) -> torch.dtype:
    """Return the dtype of the weights that are not trained."""
    dtypes = {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}
    return dtypes.get(precision, torch.float32)


def count_parameters(model: Any) -> tuple[int, int]:
    """Return the number of trainable parameters and of all parameters."""
    # DeepSpeed stores the size of a parameter that it has partitioned.
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


@contextmanager
def _model_errors(source: str) -> Iterator[None]:
    """Convert the errors of transformers to BaseModelNotFound or ModelUnsupported."""
    _silence_libraries()
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if has_disk_full_cause(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if any(phrase in str(error) for phrase in UNKNOWN_ARCHITECTURE):
            raise ModelUnsupported(
                f"The architecture of the model {source} is not known to this version: {reason}",
                "Choose a model that transformers supports as a causal language model.",
            ) from error
        raise BaseModelNotFound(
            f"The model {source} cannot be loaded: {reason}",
            "Use a folder with config.json, a tokenizer and safetensors weights, or a hub id that this host "
            "can download.",
        ) from error


def _silence_libraries() -> None:
    """Disable progress bars, telemetry to the hub, and warnings meant for the authors of PEFT and TRL."""
    disable_progress_bar()
    constants.HF_HUB_DISABLE_TELEMETRY = True
    warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing\w*` is deprecated", FutureWarning)


def check_adapter_folder(folder: Path) -> Path:
    """Return the verified folder of an adapter whose config and weights PEFT can read.

    PEFT's own errors name neither the file nor the cause.
    """
    if not folder.is_dir():
        raise _unreadable(str(folder), "the folder does not exist")
    is_of_mlx = (folder / MLX_WEIGHTS).is_file()
    for name in (ADAPTER_CONFIG,) if is_of_mlx else (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise _unreadable(str(folder), f"it has no {name}")
    opened = Path(_open_adapter(str(folder)))
    try:
        PeftConfig.from_pretrained(str(opened))
        with safe_open(opened / ADAPTER_WEIGHTS, framework="pt"):
            pass
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(str(folder), str(error)) from error
    return opened


def _open_adapter(folder: str) -> str:
    try:
        return open_adapter(folder)
    except (ModelRefused, BaseModelNotFound) as error:
        raise AdapterUnreadable(error.message, error.hint) from error


def _unreadable(adapter: str, reason: str) -> AdapterUnreadable:
    return AdapterUnreadable(
        f"The adapter {adapter} cannot be used: {reason}.",
        "Use a folder with adapter_config.json and adapter_model.safetensors for this base.",
    )
