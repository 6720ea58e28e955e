"""What the output of a run follows from: config, inputs by hash, and the versions of code and packages."""

import hashlib
import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from app.settings import Settings
from app.storage.database import read_session
from app.tables import Model, Run
from app.workers.host_hardware import find_version
from trainers.configs import (
    EngineClientConfig,
    EngineSampledConfig,
    EvaluateConfig,
    LmEvalConfig,
    PrepareConfig,
    TrainingConfig,
)
from trainers.configs.backends.kernels import KernelPackage
from trainers.configs.base import StageConfig
from trainers.configs.metrics.judge import JudgeConfig
from trainers.configs.references import FolderModel, RegistryModel, parse_location, replace_references
from trainers.runtime.verified_files import hash_files
from workers.inputs.models import ResolvedModel
from workers.reuse.folder_hash import hash_folder
from workers.runs.launch import Launch

# Fields on which the output does not depend.
UNRELATED = {"name", "needs", "when", "limits", "queue"}


def describe_inputs(run: Run, launch: Launch, settings: Settings) -> dict[str, Any]:
    """Return the run's inputs as JSON; raises OSError if a model in a folder cannot be read."""
    python = settings.trainer_python
    return {
        "models": {path: _describe_model(model, settings.data_dir) for path, model in launch.models.items()},
        "datasets": {
            path: {"id": dataset.id, "name": dataset.name, "sha256": dataset.sha256}
            for path, dataset in launch.datasets.items()
        },
        "code_sha256": hash_code(),
        "versions": {} if python else _find_versions(run),
        "trainer_python": python or None,
        "queue": run.queue.value,
    }


def compute_fingerprint(run: Run, inputs: dict[str, Any]) -> str:
    """Return a hash that is equal for two runs whose configs, inputs, code and versions are equal."""
    references = {
        **{path: _identify_model(model) for path, model in inputs["models"].items()},
        **{path: dataset["sha256"] for path, dataset in inputs["datasets"].items()},
    }
    config = replace_references(run.stage_config(), references).model_dump(mode="json", exclude=UNRELATED)
    rest = {name: inputs[name] for name in ("code_sha256", "versions", "trainer_python", "queue")}
    content = json.dumps({"config": config, **rest}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def is_determined(config: StageConfig) -> bool:
    """Return whether everything that the output follows from is among the inputs that have a hash."""
    if isinstance(config, PrepareConfig):
        # Files of a folder, or the newest commit of the hub, may have changed.
        return config.source is None
    if isinstance(config, EvaluateConfig):
        is_judged = any(isinstance(metric, JudgeConfig) for metric in config.metrics)
        return len(config.engine_models) == len(config.models) and not is_judged
    if isinstance(config, EngineSampledConfig) and config.generation.engine is not None:
        # Completions depend on the engine's batches and version.
        return False
    if isinstance(config, TrainingConfig) and config.kernels is not KernelPackage.none:
        # Another version of the package, or changed files of the folder.
        return False
    # Data of the hub may have changed.
    return not (isinstance(config, LmEvalConfig) and config.needs_hub)


@cache
def hash_code() -> str:
    """Return the hash of the source of all programs and of our engines."""
    packages = [Path(str(resources.files(name))) for name in ("trainers", "serving")]
    patterns = "*.py", "*.yaml"
    paths = (path for folder in packages for pattern in patterns for path in folder.rglob(pattern))
    return hash_files(packages[0].parent, paths)


def _describe_model(model: ResolvedModel, data_dir: Path) -> dict[str, Any]:
    """Return where the weights of base and adapter are, and their hashes."""
    is_checkpoint = model.checkpoint_of is not None
    described: dict[str, Any] = {
        "model_id": model.model_id,
        "base": None,
        "adapter": None,
        "checkpoint": {"run": model.checkpoint_of, "step": model.checkpoint} if is_checkpoint else None,
    }
    # A checkpoint without an adapter has whole weights.
    if not is_checkpoint or model.adapter is not None:
        described["base"] = _describe_weights(model.origin, data_dir)
    if model.adapter_origin is not None:
        described["adapter"] = _describe_weights(model.adapter_origin, data_dir)
    return described


def _describe_weights(origin: str, data_dir: Path) -> dict[str, str | None]:
    location = parse_location(origin)
    sha256 = None
    if isinstance(location, RegistryModel):
        with read_session() as session:
            sha256 = session.get_one(Model, location.id).sha256
    elif isinstance(location, FolderModel):
        sha256 = hash_folder(location.path, data_dir)
    # The location of a hub model has its commit.
    return {"origin": origin, "sha256": sha256}


def _identify_model(described: dict[str, Any]) -> str:
    """Return what decides the model: weights that were trained twice to the same bits are equal."""
    weights = [
        part and (part["sha256"] or part["origin"]) for part in (described["base"], described["adapter"])
    ]
    return json.dumps([*weights, described["checkpoint"]])


def _find_versions(run: Run) -> dict[str, str]:
    config = run.stage_config()
    engine = [config.engine.value] if isinstance(config, EngineClientConfig) else []
    found = {package: find_version(package) for package in [*run.stage.stage.packages, *engine]}
    return {package: version for package, version in found.items() if version is not None}
