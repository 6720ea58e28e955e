"""An embedding model of transformers, encoder or decoder, with the recipe of its files.

Texts are padded on the right whatever the tokenizer's side: a decoder's tokens do not see what follows them,
and an encoder's do not see what is masked, so that the padding changes nothing and no position is shifted.

Tensor suffixes: b texts, t tokens, h hidden size, d size of the embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import normalizers
from transformers import AutoConfig, AutoModel
from transformers.utils.logging import disable_progress_bar

from serving.engines.decoding.base import ModelNotLoadable, check_vocabulary_size, open_base_model
from serving.engines.decoding.served import ServedModel, load_tokenizer
from serving.engines.embedding.pooling import pool
from serving.engines.hf.model import DTYPES, best_device
from trainers.configs.engines import EngineOptions, Pooling
from trainers.modeling.embedding.recipe import Activation, DenseLayer, EmbeddingRecipe, read_recipe
from trainers.runtime.errors import ProgramError

ACTIVATIONS: dict[Activation, type[torch.nn.Module]] = {
    Activation.identity: torch.nn.Identity,
    Activation.tanh: torch.nn.Tanh,
    Activation.relu: torch.nn.ReLU,
    Activation.gelu: torch.nn.GELU,
    Activation.silu: torch.nn.SiLU,
    Activation.sigmoid: torch.nn.Sigmoid,
}
# A pooling layer of BERT's own, which classifiers use; many checkpoints lack it.
UNUSED_WEIGHTS = "pooler."
# Tokenizers without a limit of their own have a very large one.
MAX_PLAUSIBLE_LENGTH = 2**24


@dataclass(frozen=True)
class TokenizedText:
    """The token ids of a text; the first `n_prompt` of them are those of the model's prompt."""

    ids: list[int]
    n_prompt: int = 0


@dataclass
class EmbeddingModel:
    """The loaded model. Only its thread touches the weights."""

    served: ServedModel
    recipe: EmbeddingRecipe
    network: Any
    head: torch.nn.Module
    device: Any
    max_model_len: int
    vocabulary_size: int
    size: int
    """Dimensions of an embedding."""
    models: dict[str, ServedModel] = field(init=False)
    n_prompt: int = field(init=False)
    """Tokens of the prompt before every text."""

    def __post_init__(self) -> None:
        self.models = {self.served.name: self.served}
        self.n_prompt = self._count_prompt_tokens()

    @property
    def is_matryoshka(self) -> bool:
        """Whether the first dimensions of an embedding are embeddings themselves, as the config declares."""
        config = self.network.config
        return bool(self.matryoshka_sizes) or getattr(config, "is_matryoshka", False) is True

    @property
    def matryoshka_sizes(self) -> list[int]:
        """The sizes that the model was trained for; none if the config does not list them."""
        sizes = getattr(self.network.config, "matryoshka_dimensions", None)
        return [size for size in sizes if isinstance(size, int)] if isinstance(sizes, list) else []

    def embed(self, texts: Sequence[TokenizedText]) -> torch.Tensor:
        """Return the embeddings of texts in one forward pass (b, d), in fp32 on the CPU."""
        longest = max(len(text.ids) for text in texts)
        pad = self.served.tokenizer.pad_token_id or 0
        ids_bt = torch.tensor([text.ids + [pad] * (longest - len(text.ids)) for text in texts])
        mask_bt = torch.tensor([[1] * len(text.ids) + [0] * (longest - len(text.ids)) for text in texts])
        mask_bt = mask_bt.to(self.device)
        options = {"use_cache": False} if hasattr(self.network.config, "use_cache") else {}
        output = self.network(input_ids=ids_bt.to(self.device), attention_mask=mask_bt, **options)
        skipped = [0 if self.recipe.includes_prompt else text.n_prompt for text in texts]
        n_skipped_b = torch.tensor(skipped, device=self.device)
        pooled_bd = pool(output.last_hidden_state.float(), mask_bt, n_skipped_b, self.recipe.pooling)
        embeddings_bd: torch.Tensor = self.head(pooled_bd)
        return normalize(embeddings_bd, self.recipe).cpu()

    def _count_prompt_tokens(self) -> int:
        """Count the tokens of the prompt alone, without one that ends a text."""
        if not self.recipe.prompt:
            return 0
        tokenizer = self.served.tokenizer
        ids: list[int] = tokenizer(self.recipe.prompt)["input_ids"]
        return len(ids) - bool(ids and ids[-1] in tokenizer.all_special_ids)


def normalize(embeddings_bd: torch.Tensor, recipe: EmbeddingRecipe) -> torch.Tensor:
    """Return embeddings of the length 1 if the recipe normalizes."""
    return torch.nn.functional.normalize(embeddings_bd, dim=-1) if recipe.normalizes else embeddings_bd


def load_embedding_model(
    path: str, name: str, options: EngineOptions, pooling: Pooling | None, device: Any = None
) -> EmbeddingModel:
    """Load safetensors weights, the tokenizer and the recipe onto the best device, or onto `device`.

    Raises:
        ModelNotLoadable: The engine cannot serve the model. Other errors are the loader's own.
    """
    folder = open_base_model(path)
    try:
        recipe = read_recipe(Path(folder), pooling)
    except ProgramError as error:
        raise ModelNotLoadable(f"{error.message} {error.hint or ''}".strip()) from error
    disable_progress_bar()
    device = device or best_device()
    network = load_transformer(folder, options, device)
    tokenizer = load_tokenizer(folder)
    if recipe.lowercases:
        lower_case(tokenizer)
    vocabulary_size = network.get_input_embeddings().weight.shape[0]
    check_vocabulary_size(path, tokenizer, vocabulary_size)
    hidden_size = network.config.hidden_size * len(recipe.pooling)
    head = load_head(path, recipe.layers, hidden_size).to(device)
    return EmbeddingModel(
        ServedModel(name, folder, None, tokenizer, frozenset()),
        recipe,
        network,
        head,
        device,
        max_text_tokens(path, network, tokenizer, recipe, options),
        vocabulary_size,
        recipe.layers[-1].n_outputs if recipe.layers else hidden_size,
    )


def load_transformer(folder: str, options: EngineOptions, device: Any) -> Any:
    """Load the network without a head; raises ModelNotLoadable for one of another kind."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.is_encoder_decoder or config.get_text_config() is not config:
        raise ModelNotLoadable(
            f"The architecture {config.model_type} is not an encoder or a decoder of text alone, so its "
            "hidden states cannot be pooled."
        )
    network, loaded = AutoModel.from_pretrained(
        folder,
        dtype=DTYPES[options.dtype],
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    missing = sorted(key for key in loaded["missing_keys"] if not key.startswith(UNUSED_WEIGHTS))
    if missing:
        raise ModelNotLoadable(f"The weights {missing[0]} are missing, and {len(missing) - 1} others.")
    return network.to(device).eval().requires_grad_(False)


def load_head(path: str, layers: Sequence[DenseLayer], hidden_size: int) -> torch.nn.Module:
    """Load the dense layers after the pooling; raises ModelNotLoadable for weights of other sizes."""
    modules: list[torch.nn.Module] = []
    n_inputs = hidden_size
    for layer in layers:
        weights = load_file(layer.weights)
        expected: dict[str, tuple[int, ...]] = {"linear.weight": (layer.n_outputs, n_inputs)}
        expected |= {"linear.bias": (layer.n_outputs,)} if layer.has_bias else {}
        if layer.n_inputs != n_inputs or {key: tuple(t.shape) for key, t in weights.items()} != expected:
            raise ModelNotLoadable(
                f"The module {layer.weights.parent.name} of {path} does not have the weights of its config: "
                f"{n_inputs} inputs and {layer.n_outputs} outputs."
            )
        linear = torch.nn.Linear(n_inputs, layer.n_outputs, bias=layer.has_bias)
        linear.load_state_dict(
            {key.removeprefix("linear."): tensor.float() for key, tensor in weights.items()}
        )
        modules += [linear, ACTIVATIONS[layer.activation]()]
        n_inputs = layer.n_outputs
    return torch.nn.Sequential(*modules).eval().requires_grad_(False)


def lower_case(tokenizer: Any) -> None:
    """Let a tokenizer read texts in lower case, in addition to its own normalization."""
    own = tokenizer.backend_tokenizer.normalizer
    steps = [normalizers.Lowercase(), *([own] if own is not None else [])]
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(steps)


def max_text_tokens(
    path: str, network: Any, tokenizer: Any, recipe: EmbeddingRecipe, options: EngineOptions
) -> int:
    """Return the most tokens of a text: the least of all limits that the model's files state.

    Raises:
        ModelNotLoadable: `max_model_len` is more than that, or missing where the files state no limit.
    """
    positions = getattr(network.config, "max_position_embeddings", None)
    if positions is not None:
        # RoBERTa and its kin count positions from the padding token's id + 1.
        padding = getattr(getattr(network, "embeddings", None), "padding_idx", None)
        positions -= padding + 1 if padding is not None else 0
    length = tokenizer.model_max_length if tokenizer.model_max_length < MAX_PLAUSIBLE_LENGTH else None
    limits = [limit for limit in (positions, length, recipe.max_tokens) if limit is not None]
    if not limits and options.max_model_len is None:
        raise ModelNotLoadable(f"The config of {path} has no context length; pass --max-model-len.")
    own = min(limits, default=options.max_model_len or 0)
    if options.max_model_len is not None and options.max_model_len > own:
        raise ModelNotLoadable(
            f"--max-model-len {options.max_model_len} is more than the {own} tokens that {path} reads."
        )
    return options.max_model_len or own
