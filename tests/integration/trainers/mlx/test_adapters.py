"""An adapter computes the same in PEFT and in mlx-lm, whichever of them wrote it.

Log-probabilities of fixed tokens by torch and by MLX, on one small base with all seven projections adapted.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from trainers.mlx.adapter_files import AdapterNotConvertible, peft_to_mlx
from trainers.modeling.model_config import read_object
from trainers.modeling.model_files import ModelRole, open_model, read_adapter_base

mx = pytest.importorskip("mlx.core")
tree = pytest.importorskip("mlx.utils")
utils = pytest.importorskip("mlx_lm.utils")
adapters = pytest.importorskip("trainers.mlx.adapters")
# PEFT uses a deprecated attribute of transformers.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")

# In nats; the adapters change single tokens by more than one.
TOLERANCE = 1e-5
IDS = torch.randint(3, 280, (64,), generator=torch.Generator().manual_seed(0)).tolist()
PROJECTIONS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True, "lora_alpha": 8},
    "dora": {"use_dora": True},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    config = LlamaConfig(
        vocab_size=280,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        rope_theta=10_000.0,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def torch_network(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def torch_logprobs(network: Any) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = network.eval()(input_ids=torch.tensor([IDS])).logits[0]
    return logits.log_softmax(-1)


def mlx_logprobs(network: Any) -> torch.Tensor:
    network.eval()
    return torch.tensor(network(mx.array([IDS]))[0].tolist()).log_softmax(-1)


def mlx_network(base: Path) -> Any:
    return utils.load_model(base)[0]


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference of a token's log-probability."""
    next_T1 = torch.tensor(IDS[1:])[:, None]  # noqa: N806
    return float((one - other)[:-1].gather(1, next_T1).abs().max())


def write_peft(base: Path, folder: Path, **options: Any) -> Any:
    """Write an adapter with an effect, as training would, and return PEFT's model."""
    torch.manual_seed(1)
    settings = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    tuned = get_peft_model(torch_network(base), LoraConfig(**(settings | options)))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
        if "magnitude" in name:
            weight.data *= 1 + 0.1 * torch.randn_like(weight)
    tuned.save_pretrained(folder)
    return tuned


def from_peft(base: Path, folder: Path) -> torch.Tensor:
    return torch_logprobs(PeftModel.from_pretrained(torch_network(base), str(folder)))


@pytest.mark.parametrize("kind", list(KINDS))
def test_adapters_of_peft_compute_the_same_in_mlx_and_come_back_unchanged(
    base: Path, tmp_path: Path, kind: str
) -> None:
    tuned = write_peft(base, tmp_path / "peft", **KINDS[kind])
    expected = torch_logprobs(tuned)
    assert difference(expected, torch_logprobs(torch_network(base))) > 1
    peft_to_mlx(tmp_path / "peft", tmp_path / "mlx")
    loaded = utils.load_adapters(mlx_network(base), str(tmp_path / "mlx"))
    assert difference(mlx_logprobs(loaded), expected) < TOLERANCE
    back = open_model(tmp_path / "mlx", ModelRole.adapter, [tmp_path], tmp_path / "views")
    assert difference(from_peft(base, back), expected) < TOLERANCE
    assert sorted(read_object(back / "adapter_config.json")["target_modules"]) == PROJECTIONS
    # The same files are converted once.
    assert open_model(tmp_path / "mlx", ModelRole.adapter, [tmp_path], tmp_path / "views") == back


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_adapter_that_is_loaded_to_train_is_published_as_peft_wrote_it(
    base: Path, tmp_path: Path, kind: str
) -> None:
    expected = torch_logprobs(write_peft(base, tmp_path / "peft", **KINDS[kind]))
    network = mlx_network(base)
    config = adapters.load_adapter(network, tmp_path / "peft")
    assert difference(mlx_logprobs(network), expected) < TOLERANCE
    (tmp_path / "published").mkdir()
    adapters.save_adapter(network, config, tmp_path / "published", "org/base")
    assert difference(from_peft(base, tmp_path / "published"), expected) < TOLERANCE
    written, published = (
        read_object(tmp_path / folder / "adapter_config.json") for folder in ("peft", "published")
    )
    assert published.pop("base_model_name_or_path") == "org/base"
    assert written.pop("base_model_name_or_path") == str(base)
    for settings in (written, published):
        settings["target_modules"] = sorted(settings["target_modules"])
    assert published == written


def test_a_new_adapter_changes_nothing_and_is_all_that_is_trained(base: Path, tmp_path: Path) -> None:
    network = mlx_network(base)
    config = LoraConfig(r=4, lora_alpha=8, use_dora=True, task_type="CAUSAL_LM")
    adapters.add_adapter(network, config, adapters.linear_modules(network, "all-linear"))
    assert difference(mlx_logprobs(network), torch_logprobs(torch_network(base))) < TOLERANCE
    trained = dict(tree.tree_flatten(network.trainable_parameters()))
    assert {name.rpartition(".")[2] for name in trained} == {"lora_a", "lora_b", "m"}
    assert len(trained) == 3 * 3 * len(PROJECTIONS)
    adapters.save_adapter(network, config, tmp_path, "base")
    assert difference(from_peft(base, tmp_path), torch_logprobs(torch_network(base))) < TOLERANCE


def test_an_adapter_of_the_last_layers_names_them(base: Path, tmp_path: Path) -> None:
    network = mlx_network(base)
    tuner = pytest.importorskip("mlx_lm.tuner.utils")
    parameters = {"rank": 4, "scale": 2.5, "dropout": 0.0, "keys": ["self_attn.q_proj", "mlp.up_proj"]}
    mx.random.seed(0)
    tuner.linear_to_lora_layers(network, 2, parameters)
    for layer in network.modules():
        if "lora_b" in layer:
            layer.lora_b = mx.random.normal(layer.lora_b.shape) * 0.1
    weights = {name: weight for name, weight in tree.tree_flatten(network.parameters()) if ".lora_" in name}
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), weights)
    # What mlx-lm leaves in the folder: the arguments of its command, and checkpoints.
    settings = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters, "model": str(base)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"data": "rows", "seed": 0}))
    (tmp_path / "0000100_adapters.safetensors").write_bytes(b"")
    assert read_adapter_base(tmp_path) == str(base)
    opened = open_model(tmp_path, ModelRole.adapter, [tmp_path], tmp_path / "views")
    assert {path.name for path in opened.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert difference(from_peft(base, opened), mlx_logprobs(network)) < TOLERANCE
    named = read_object(opened / "adapter_config.json")["target_modules"]
    assert sorted(named) == [
        f"model.layers.{layer}.{key}" for layer in (1, 2) for key in ("mlp.up_proj", "self_attn.q_proj")
    ]


def test_what_the_other_format_cannot_express_is_refused(base: Path, tmp_path: Path) -> None:
    write_peft(base, tmp_path / "ranks", rank_pattern={"q_proj": 8})
    with pytest.raises(AdapterNotConvertible, match="2 combinations of rank and scale"):
        peft_to_mlx(tmp_path / "ranks", tmp_path / "mlx")
    assert not (tmp_path / "mlx").exists()
    # Trained further here, modules may have ranks of their own.
    assert adapters.load_adapter(mlx_network(base), tmp_path / "ranks").rank_pattern == {"q_proj": 8}
    write_peft(base, tmp_path / "bias", bias="lora_only")
    with pytest.raises(AdapterNotConvertible, match="bias 'lora_only'"):
        adapters.load_adapter(mlx_network(base), tmp_path / "bias")
