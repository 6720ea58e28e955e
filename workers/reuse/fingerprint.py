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
from trainers.configs import EvaluateConfig, LmEvalConfig, PrepareConfig
from trainers.configs.base import StageConfig
from trainers.configs.metrics.judge import JudgeConfig
from trainers.configs.references import FolderModel, parse_location, replace_references
from trainers.runtime.verified_files import hash_file
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
    # Data of the hub may have changed.
    return not (isinstance(config, LmEvalConfig) and config.needs_hub)


@cache
def hash_code() -> str:
    """Return the hash of the source of all programs."""
    root = Path(str(resources.files("trainers")))
    paths = sorted(path for pattern in ("*.py", "*.yaml") for path in root.rglob(pattern))
    lines = [f"{path.relative_to(root)} {hash_file(path)}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _describe_model(model: ResolvedModel, data_dir: Path) -> dict[str, Any]:
    described: dict[str, Any] = {"origin": model.origin, "model_id": model.model_id, "sha256": None}
    if model.model_id is not None:
        with read_session() as session:
            described["sha256"] = session.get_one(Model, model.model_id).sha256
    elif model.checkpoint_of is not None:
        described["checkpoint"] = {"run": model.checkpoint_of, "step": model.checkpoint}
    elif isinstance(location := parse_location(model.origin), FolderModel):
        described["sha256"] = hash_folder(location.path, data_dir)
    return described


def _identify_model(described: dict[str, Any]) -> str:
    """Return what decides the model: weights that were trained twice to the same bits are equal."""
    return json.dumps({**described, "model_id": None}, sort_keys=True)


def _find_versions(run: Run) -> dict[str, str]:
    engine = getattr(run.stage_config(), "engine", None)
    packages = [*run.stage.stage.packages, *([engine.value] if engine is not None else [])]
    found = {package: find_version(package) for package in packages}
    return {package: version for package, version in found.items() if version is not None}
