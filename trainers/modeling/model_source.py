"""The one place where a program turns the name of a model into a folder.

Started by a worker, a program gets absolute folders, which the worker has resolved. By hand, a name may also
be a relative folder, or a hub id.
"""

import shutil
from contextlib import suppress
from pathlib import Path

from trainers.modeling.model_files import BaseModelNotFound, ModelRole, open_model

# The environment of programs and engines whose inputs are folders: no library asks a hub for anything.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def open_base(source: str) -> str:
    """Return the verified folder of a base model: a folder, or a hub id, which is downloaded.

    Raises BaseModelNotFound or ModelRefused, and HubUnreachable for a hub id.
    """
    folder = Path(source)
    if folder.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1 or "\\" in source:
        if not folder.is_dir():
            raise BaseModelNotFound(f"The model folder {source} does not exist.", "Check the path.")
    elif not folder.is_dir():
        # Importing the hub's client takes half a second, which a folder need not spend.
        from trainers.modeling.hub import download_model

        folder = Path(download_model(source).folder)
    return str(open_model(folder, ModelRole.base))


def open_adapter(folder: str) -> str:
    """Return the verified folder of an adapter; raises BaseModelNotFound or ModelRefused."""
    return str(open_model(Path(folder), ModelRole.adapter))


def link_files(source: Path, target: Path) -> None:
    """Copy verified files. Weights are hard links where the disk allows: they are never written to."""
    for path in sorted(source.rglob("*")):
        if not path.is_file() or path.name.startswith("."):
            continue
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            with suppress(OSError):
                copy.hardlink_to(path.resolve())
                continue
        shutil.copyfile(path, copy)
