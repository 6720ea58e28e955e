"""The check of a model that was made elsewhere: its files, and that an adapter fits its base.

The base is built without memory for its weights, and the adapter's tensors are compared with those that PEFT
expects for it: their names and shapes. So an adapter of another model is found here, not when it is served.
"""

from pathlib import Path

import torch
from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open

from trainers.configs.base import AdaptedModel
from trainers.configs.references import get_base_model
from trainers.configs.stages.import_model import ImportConfig
from trainers.modeling.load import AdapterUnreadable, load_config
from trainers.modeling.model_files import ADAPTER_WEIGHTS
from trainers.modeling.model_source import open_adapter, open_base
from trainers.modeling.multimodal.architectures import auto_class
from trainers.runtime.errors import ConfigInvalid, join_names

# Names of tensors that an error lists.
MAX_LISTED = 3


def check_import(config: ImportConfig) -> Path:
    """Return the folder to import.

    Raises AdapterUnreadable for an adapter of another base, ConfigInvalid for a base of whole weights, and
    the errors of `open_adapter`, `open_base` and `load_config`.
    """
    base = get_base_model(config.model)
    if isinstance(config.model, AdaptedModel):
        folder = Path(open_adapter(config.model.adapter))
        _check_fit(folder, base)
        return folder
    if config.base is not None:
        raise ConfigInvalid(f"The model {base} has whole weights, so it needs no base.", "Leave `base` out.")
    load_config(base)
    return Path(open_base(base))


def _check_fit(adapter: Path, base: str) -> None:
    """Compare the adapter's tensors with those that PEFT expects for this base; raises AdapterUnreadable."""
    try:
        peft_config = PeftConfig.from_pretrained(str(adapter))
        # The base may have another path here, of which PEFT would warn.
        peft_config.base_model_name_or_path = None
        # Some initial values are computed from the weights of the base, which have no content here.
        peft_config.init_lora_weights = False
        # Without memory, a quantized base has the modules of one that is not.
        base_config = load_config(base)
        base_config.__dict__.pop("quantization_config", None)
        with torch.device("meta"):
            model = auto_class(base_config).from_config(base_config, trust_remote_code=False)
            adapted = get_peft_model(model, peft_config)
        expected = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(adapted).items()}
    except (ValueError, TypeError, KeyError) as error:
        raise _unfit(adapter, base, str(error).strip().splitlines()[0]) from error
    with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as weights:
        actual = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    if missing := sorted(expected.keys() - actual.keys()):
        raise _unfit(adapter, base, f"it lacks {join_names(missing, MAX_LISTED)}, which its config asks for")
    # An adapter may contain a layer that PEFT saves only sometimes, such as embeddings that were resized.
    unlike = sorted(name for name in expected.keys() & actual.keys() if expected[name] != actual[name])
    if unlike:
        name = unlike[0]
        raise _unfit(
            adapter, base, f"its tensor {name} has the shape {actual[name]} instead of {expected[name]}"
        )
    if unknown := sorted(name for name in actual.keys() - expected.keys() if ".lora_" in name):
        raise _unfit(
            adapter, base, f"the base has no layer for its tensors {join_names(unknown, MAX_LISTED)}"
        )


def _unfit(adapter: Path, base: str, reason: str) -> AdapterUnreadable:
    return AdapterUnreadable(
        f"The adapter {adapter} does not fit the base {base}: {reason}.",
        "Name the base that it was trained on as `base`.",
    )
