"""Copy a model that was made elsewhere, once its files are verified and an adapter fits its base.

The base is built without memory for its weights, and the adapter's tensors are compared with those that PEFT
expects for it: their names and shapes. So an adapter of another model is found here, not when it is served.

    python -m trainers.import_model --config import.yaml --run-dir runs/imported
"""

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from trainers.configs.base import AdaptedModel
from trainers.configs.references import get_base_model
from trainers.configs.stages.import_model import ImportConfig
from trainers.modeling.load import (
    AdapterUnreadable,
    load_config,
    load_tokenizer,
    template_sha256,
)
from trainers.modeling.model_files import ADAPTER_WEIGHTS
from trainers.modeling.model_source import link_files, open_adapter, open_base
from trainers.runtime import run_dir as files
from trainers.runtime.errors import ConfigInvalid, join_names
from trainers.runtime.events import EventWriter
from trainers.runtime.program import run_program

# Names of tensors that an error lists.
MAX_LISTED = 3


def run(config: ImportConfig, run_dir: Path, events: EventWriter) -> dict[str, Any]:
    """Publish `model/` and return the result; raises AdapterUnreadable for an adapter of another base."""
    reference = config.model
    base = get_base_model(reference)
    if isinstance(reference, AdaptedModel):
        folder = Path(open_adapter(reference.adapter))
        _check_fit(folder, base)
    elif config.base is not None:
        raise ConfigInvalid(f"The model {base} has whole weights, so it needs no base.", "Leave `base` out.")
    else:
        load_config(base)
        folder = Path(open_base(base))
    events.write_progress(1, 2)
    files.publish_folder(run_dir / files.MODEL, lambda copy: link_files(folder, copy))
    events.write_progress(2, 2)
    return {
        "stage": "import",
        "model": {
            "path": files.MODEL,
            "kind": "adapter" if isinstance(reference, AdaptedModel) else "base",
            "base": base,
            "template_sha256": template_sha256(load_tokenizer(reference)),
        },
    }


def plan(config: ImportConfig) -> dict[str, Any]:
    """Return what would be imported, without copying it."""
    is_adapter = isinstance(config.model, AdaptedModel)
    return {"stage": "import", "kind": "adapter" if is_adapter else "base", "model": config.model}


def _check_fit(adapter: Path, base: str) -> None:
    """Compare the adapter's tensors with those that PEFT expects for this base; raises AdapterUnreadable."""
    try:
        peft_config = PeftConfig.from_pretrained(str(adapter))
        # Some initial values are computed from the weights of the base, which have no content here.
        peft_config.init_lora_weights = False
        # Without memory, a quantized base has the modules of one that is not.
        base_config = load_config(base)
        base_config.__dict__.pop("quantization_config", None)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(base_config, trust_remote_code=False)
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


if __name__ == "__main__":
    run_program(ImportConfig, run, plan)
