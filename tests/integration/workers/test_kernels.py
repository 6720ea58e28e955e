"""Goal: a worker runs the code of kernels only from the folders that its operator has set."""

from pathlib import Path

import pytest

from app.settings import Settings
from trainers.configs import parse_stage
from trainers.configs.backends.kernels import KernelFolder, KernelPackage
from trainers.configs.stages.preflight import PreflightConfig
from trainers.configs.training import TrainingConfig
from workers.inputs.errors import InputKernelsRefused, LaunchError
from workers.inputs.kernels import place_kernels
from workers.reuse.fingerprint import is_determined


@pytest.fixture
def root(settings: Settings, tmp_path: Path) -> Path:
    root = tmp_path / "kernels"
    (root / "fast").mkdir(parents=True)
    (root / "fast" / "layers.py").write_text("")
    (tmp_path / "other").mkdir()
    (root / "link").symlink_to(tmp_path / "other")
    settings.kernel_roots = [root]
    return root


def stage(folder: Path) -> TrainingConfig:
    config = parse_stage(
        {"stage": "sft", "base": "a/b", "dataset": "rows", "kernels": {"folder": str(folder)}}
    )
    assert isinstance(config, TrainingConfig)
    return config


def test_an_allowed_folder_is_named_by_its_real_path(settings: Settings, root: Path) -> None:
    named = stage(root / ".." / "kernels" / "fast")
    assert place_kernels(named, settings).kernels == KernelFolder(folder=str(root / "fast"))
    probe = PreflightConfig(stage="preflight", target=named)
    placed = place_kernels(probe, settings).target
    assert isinstance(placed, TrainingConfig) and placed.kernels == KernelFolder(folder=str(root / "fast"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../other", "not under a folder whose code this worker may run"),
        ("link", "not under a folder whose code this worker may run"),
        (".", "not under a folder whose code this worker may run"),
        ("absent", "does not exist on this worker's host"),
    ],
)
def test_any_other_folder_is_refused(settings: Settings, root: Path, name: str, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        place_kernels(stage(root / name), settings)


def test_a_link_out_of_the_folder_is_refused(settings: Settings, root: Path, tmp_path: Path) -> None:
    (tmp_path / "other" / "layers.py").write_text("")
    (root / "fast" / "more.py").symlink_to(tmp_path / "other" / "layers.py")
    message = r"The file more\.py of the kernels .* is a link out of the roots"
    with pytest.raises(InputKernelsRefused, match=message):
        place_kernels(stage(root / "fast"), settings)


def test_a_stage_with_kernels_does_not_take_the_output_of_an_equal_one(root: Path) -> None:
    """The files of the folder may be others by now."""
    with_kernels = stage(root / "fast")
    assert not is_determined(with_kernels)
    assert is_determined(with_kernels.model_copy(update={"kernels": KernelPackage.none}))
