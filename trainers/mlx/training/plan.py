"""What a training program with MLX resolves before it trains."""

from typing import Any, TypeVar

from trainers.configs.backends.choice import Backend, PortableTrainingConfig, find_backend_fault
from trainers.mlx.network import (
    count_network_parameters,
    load_trained_network,
    pick_mlx_precision,
    uses_gpu,
)
from trainers.mlx.training.environment import expected_guarantee
from trainers.mlx.training.stage import recomputes_activations
from trainers.preflight.memory.estimate import estimate_memory
from trainers.runtime.errors import ConfigInvalid
from trainers.runtime.events import EventWriter
from trainers.training.arguments import check_plan
from trainers.training.model_proof import prove_model

C = TypeVar("C", bound=PortableTrainingConfig)


def with_mlx(config: C) -> C:
    """Return the config with MLX as its backend, for a program that was started by hand.

    Raises ConfigInvalid for a setting that MLX does not have.
    """
    config = config.model_copy(update={"backend": Backend.mlx})
    if (fault := find_backend_fault(config, config.queue)) is not None:
        raise ConfigInvalid(
            f"The stage {config.stage} cannot run: {fault.reason}.",
            f"Change these settings, or run `python -m trainers.{config.stage}`.",
        )
    return config


def plan_mlx_training(config: PortableTrainingConfig, steps: int, longest_tokens: int) -> dict[str, Any]:
    """Return the part of `--dry-run` that all training stages share, as `plan_training` does for torch."""
    assert config.micro_batch_size is not None
    check_plan(config, steps)
    prove_model(config)

    network, _ = load_trained_network(config, EventWriter(None), longest_tokens)
    trainable, total = count_network_parameters(network)
    return {
        "steps": steps,
        "batch_size": config.batch_size,
        "micro_batch_size": config.micro_batch_size,
        "gradient_accumulation_steps": config.batch_size // config.micro_batch_size,
        "learning_rate": config.learning_rate,
        "trainable_parameters": trainable,
        "parameters": total,
        "backend": Backend.mlx.value,
        "device": "mlx" if uses_gpu() else "cpu",
        "precision": pick_mlx_precision(config),
        "activation_checkpointing": recomputes_activations(config, longest_tokens),
        "memory": estimate_memory(config, [], longest_tokens),
        "resume_guarantee": expected_guarantee(config).model_dump(mode="json"),
    }
