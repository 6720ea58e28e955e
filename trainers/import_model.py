"""Copy a model that was made elsewhere, once its files are verified and an adapter fits its base.

python -m trainers.import_model --config import.yaml --run-dir runs/imported
"""

from pathlib import Path
from typing import Any

from trainers.configs.base import AdaptedModel
from trainers.configs.references import get_base_model
from trainers.configs.stages.import_model import ImportConfig
from trainers.modeling.load import load_tokenizer, template_sha256
from trainers.modeling.model_source import link_files
from trainers.preflight.start.import_check import check_import
from trainers.runtime import run_dir as files
from trainers.runtime.events import EventWriter
from trainers.runtime.program import run_program


def run(config: ImportConfig, run_dir: Path, events: EventWriter) -> dict[str, Any]:
    """Publish `model/` and return the result; raises AdapterUnreadable for an adapter of another base."""
    folder = check_import(config)
    events.write_progress(1, 2)
    files.publish_folder(run_dir / files.MODEL, lambda copy: link_files(folder, copy))
    events.write_progress(2, 2)
    return {
        "stage": "import",
        "model": {
            "path": files.MODEL,
            "kind": "adapter" if isinstance(config.model, AdaptedModel) else "base",
            "base": get_base_model(config.model),
            "template_sha256": template_sha256(load_tokenizer(config.model)),
        },
    }


def plan(config: ImportConfig) -> dict[str, Any]:
    """Return what would be imported, without copying it."""
    is_adapter = isinstance(config.model, AdaptedModel)
    return {"stage": "import", "kind": "adapter" if is_adapter else "base", "model": config.model}


if __name__ == "__main__":
    run_program(ImportConfig, run, plan)
