"""Write a model in the formats of other programs: merged safetensors, GGUF and MLX.

Each file is loaded again by the program that it is for, and its log-probabilities are compared with those of
the trained model, before anything is published.

    python -m trainers.export --config export.yaml --run-dir runs/exported
"""

import shutil
from pathlib import Path
from typing import Any

import torch

from trainers import merge
from trainers.configs.base import AdaptedModel
from trainers.configs.references import get_base_model
from trainers.configs.stages.export import ExportConfig, ExportFormat
from trainers.configs.stages.merge import MergeConfig
from trainers.exporting import gguf
from trainers.exporting.mlx_format import require_mlx, write_mlx, write_mlx_adapter
from trainers.exporting.reference import ReferencePrompt, compute_reference
from trainers.modeling.load import load_base, load_tokenizer, template_sha256
from trainers.modeling.model_source import link_files, open_adapter, open_base
from trainers.runtime import run_dir as files
from trainers.runtime.errors import ConfigInvalid
from trainers.runtime.events import EventWriter
from trainers.runtime.program import run_program


def run(config: ExportConfig, run_dir: Path, events: EventWriter) -> dict[str, Any]:
    """Publish `model/` and return the result; raises ExportDiffers, ConversionFailed or MergeDiffers."""
    environment = _require(config)
    work = run_dir / files.SCRATCH
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    whole, checks = _write_safetensors(config, work, events)
    tokenizer = load_tokenizer(config.model)
    reference = compute_reference(load_base(str(whole), torch.float32).eval(), tokenizer)
    differences: dict[str, dict[str, float]] = {}

    def fill(folder: Path) -> None:
        link_files(whole, folder)
        differences.update(_write_formats(config, environment, whole, folder, work, reference))

    files.publish_folder(run_dir / files.MODEL, fill)
    shutil.rmtree(work)
    events.write_progress(2, 2)
    return {
        "stage": "export",
        "formats": config.formats,
        "model": {
            "path": files.MODEL,
            "kind": "base",
            "base": get_base_model(config.model),
            "template_sha256": template_sha256(tokenizer),
        },
        "checks": checks | {"formats": differences},
    }


def plan(config: ExportConfig) -> dict[str, Any]:
    """Return the formats, and check that this host can write them."""
    _require(config)
    return {"stage": "export", "model": config.model, "formats": config.formats}


def _require(config: ExportConfig) -> gguf.GgufEnvironment | None:
    """Check what the formats need before any work; return the environment of llama.cpp if it is needed."""
    adapter_format = next((form for form in config.formats if form.is_adapter), None)
    if adapter_format is not None and not isinstance(config.model, AdaptedModel):
        raise ConfigInvalid(
            f"The model {get_base_model(config.model)} has no adapter for the format {adapter_format}.",
            "Remove that format.",
        )
    if {ExportFormat.mlx, ExportFormat.mlx_adapter} & set(config.formats):
        require_mlx()
    return gguf.open_environment(config.gguf_environment) if config.capability else None


def _write_safetensors(config: ExportConfig, work: Path, events: EventWriter) -> tuple[Path, dict[str, Any]]:
    """Return a folder with whole weights, and the checks of the merge if there was one."""
    if not isinstance(config.model, AdaptedModel):
        return Path(open_base(get_base_model(config.model))), {}
    settings = MergeConfig(stage="merge", model=config.model, dtype=config.dtype)
    merged = work / "merged"
    merged.mkdir()
    result = merge.run(settings, merged, EventWriter(None))
    events.write_progress(1, 2)
    return merged / files.MODEL, {"merge": result["checks"]}


def _write_formats(
    config: ExportConfig,
    environment: gguf.GgufEnvironment | None,
    whole: Path,
    folder: Path,
    work: Path,
    reference: list[ReferencePrompt],
) -> dict[str, dict[str, float]]:
    differences: dict[str, dict[str, float]] = {}
    whole_formats = [form for form in ExportFormat if form in config.formats and form.is_gguf]
    if environment is not None and ExportFormat.gguf_adapter in whole_formats:
        whole_formats.remove(ExportFormat.gguf_adapter)
        assert isinstance(config.model, AdaptedModel)
        base, adapter = Path(open_base(config.model.base)), Path(open_adapter(config.model.adapter))
        differences |= gguf.write_adapter(
            environment, base, adapter, folder, work, reference, config.pre_tokenizer
        )
    if environment is not None and whole_formats:
        differences |= gguf.write_whole(
            environment, whole_formats, whole, folder, work, reference, config.pre_tokenizer
        )
    if ExportFormat.mlx in config.formats:
        differences |= write_mlx(whole, folder, work, reference)
    if ExportFormat.mlx_adapter in config.formats:
        assert isinstance(config.model, AdaptedModel)
        base, adapter = Path(open_base(config.model.base)), Path(open_adapter(config.model.adapter))
        differences |= write_mlx_adapter(base, adapter, folder, work, reference)
    return differences


if __name__ == "__main__":
    run_program(ExportConfig, run, plan)
