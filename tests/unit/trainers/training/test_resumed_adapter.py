"""Goal: a run does not continue with a new adapter when its checkpoint has that of other layers."""

from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from trainers.modeling.load import AdapterUnreadable
from trainers.modeling.model_files import ADAPTER_WEIGHTS
from trainers.training.loop import require_same_adapter

SIZES = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_a_checkpoint_whose_adapter_has_other_names_is_refused(tmp_path: Path) -> None:
    base = LlamaForCausalLM(LlamaConfig(**SIZES, num_attention_heads=2))
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", use_dora=True))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    require_same_adapter(model, tmp_path)
    weights = load_file(file := tmp_path / ADAPTER_WEIGHTS)
    # As of the text model within a multimodal one.
    renamed = {name.replace("layers", "language_model.layers"): weight for name, weight in weights.items()}
    save_file(renamed, file)
    with pytest.raises(AdapterUnreadable, match=r"names layers such as .*language_model\.layers"):
        require_same_adapter(model, tmp_path)
