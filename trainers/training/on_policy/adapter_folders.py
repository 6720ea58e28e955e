"""The folders through which an engine gets the adapter of each step; on Linux they are in memory."""

import os
import re
import shutil
from pathlib import Path

from peft import PeftModel

from trainers.modeling.model_files import ADAPTER_WEIGHTS
from trainers.runtime.process_tree import is_running
from trainers.runtime.verified_files import hash_file

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # The folders in it have the rights of their owner alone.
PREFIX = "tunesmith-adapters-"
# A container may have little shared memory. Two adapters are in it while one replaces the other.
MIN_FREE_ADAPTERS = 3


class AdapterFolders:
    """Writes the adapter of a model into a folder that is named for its content, one after the other.

    An engine caches adapters by name, and vLLM keeps blocks of its prefix cache by it: a name is never used
    for other weights.
    """

    def __init__(self, run_dir: Path, model: PeftModel) -> None:
        _remove_abandoned()
        trained = [one for one in model.parameters() if one.requires_grad]
        self._parent = _choose_parent(run_dir, sum(one.numel() * one.element_size() for one in trained))
        self._parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._model = model

    def write(self) -> Path:
        """Write the current adapter and return its folder; equal weights have the same one."""
        written = self._parent / "next"
        shutil.rmtree(written, ignore_errors=True)
        # Of the adapters only "default" is trained; a frozen reference is not sampled from.
        self._model.save_pretrained(written, save_embedding_layers=False, selected_adapters=["default"])
        target = self._parent / f"adapter-{hash_file(written / ADAPTER_WEIGHTS)[:32]}"
        if not target.exists():
            written.rename(target)
        return target

    def keep_only(self, folder: Path) -> None:
        """Remove every other folder."""
        for other in self._parent.iterdir():
            if other != folder:
                shutil.rmtree(other)

    def close(self) -> None:
        """Remove all folders."""
        shutil.rmtree(self._parent, ignore_errors=True)


def _choose_parent(run_dir: Path, adapter_bytes: int) -> Path:
    own = f"{PREFIX}{os.getpid()}"
    try:
        if shutil.disk_usage(SHARED_MEMORY).free > MIN_FREE_ADAPTERS * adapter_bytes:
            return SHARED_MEMORY / own
    except OSError:
        pass  # macOS has none.
    return run_dir / f".{own}"


def _remove_abandoned() -> None:
    """Remove the folders of programs that were killed."""
    for folder in SHARED_MEMORY.glob(f"{PREFIX}*"):
        found = re.fullmatch(rf"{PREFIX}([0-9]+)", folder.name)
        if found is not None and not is_running(int(found[1])):
            shutil.rmtree(folder, ignore_errors=True)
