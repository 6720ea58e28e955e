"""The data files of a dataset in the hub's layout: which files contain a split of a configuration.

The names of the files and the metadata at the top of README.md decide. The metadata only selects among the
files of the folder, so that it can name nothing elsewhere.
"""

import os
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from trainers.runtime.errors import join_names

README = "README.md"
# The reader of each kind of file; compressed files are recognized by the reader.
READERS = {
    "parquet": "parquet",
    "arrow": "arrow",
    "jsonl": "json",
    "json": "json",
    "csv": "csv",
    "txt": "text",
}
# Without the characters of glob patterns, which a reader would expand.
DATA_FILE = re.compile(
    r"(?P<stem>[\w. /=+,@-]+)\.(?P<kind>parquet|arrow|jsonl|json|csv|txt)(\.(gz|bz2|xz|zst))?"
)
NOT_DATA = frozenset(
    {"dataset_infos.json", "dataset_info.json", "state.json", "requirements.txt", "LICENSE.txt"}
)
SPLIT_WORDS = {
    "train": "train|training",
    "validation": "validation|valid|val|dev",
    "test": "test|testing|eval",
}


def select_data_files(
    names: Iterable[str], readme: str | None, subset: str | None, split: str
) -> tuple[str, list[str]]:
    """Return the reader and the files of a split, in order.

    Raises:
        ValueError: No file contains the split, or its files are of several kinds.
    """
    found = sorted(name for name in names if _is_data(name))
    configs = _parse_configs(readme)
    if configs:
        selected = _select_by_config(found, _find_config(configs, subset), split)
    else:
        within = [name for name in found if subset is None or subset in PurePosixPath(name).parent.parts]
        selected = _select_by_name(within, split)
    if not selected:
        raise ValueError(f"no file contains the split {split!r}; the data files are: {_join(found)}")
    readers = {READERS[match["kind"]] for name in selected if (match := DATA_FILE.fullmatch(name))}
    if len(readers) > 1:
        raise ValueError(f"the files of the split {split!r} are of several kinds: {_join(selected)}")
    return readers.pop(), selected


def list_data_files(folder: Path) -> list[str]:
    """Return the relative paths of all files; raises ValueError for a link that leaves the folder."""
    real = folder.resolve()
    # In the hub's cache, snapshots/<commit>/file is a link to blobs/<hash>.
    blobs = real.parent.parent / "blobs" if real.parent.name == "snapshots" else real
    names = []
    for root, _, files in os.walk(real):
        for name in files:
            path = Path(root) / name
            target = path.resolve()
            if not target.is_relative_to(real) and not target.is_relative_to(blobs):
                raise ValueError(f"{path.relative_to(real)} is a link to a file outside the folder")
            names.append(path.relative_to(real).as_posix())
    return names


def read_readme(folder: Path) -> str | None:
    """Return the content of README.md, if the folder has one."""
    try:
        return (folder / README).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _is_data(name: str) -> bool:
    path = PurePosixPath(name)
    return (
        DATA_FILE.fullmatch(name) is not None
        and path.name not in NOT_DATA
        and not path.is_absolute()
        and not any(part.startswith(".") for part in path.parts)
    )


def _parse_configs(readme: str | None) -> list[dict[str, Any]]:
    """Return the configurations in the metadata of README.md that name data files."""
    parts = (readme or "").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return []
    try:
        metadata = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        raise ValueError(
            f"the metadata of {README} is not valid YAML: {str(error).splitlines()[0]}"
        ) from error
    configs = metadata.get("configs") if isinstance(metadata, dict) else None
    return [
        config
        for config in (configs if isinstance(configs, list) else [])
        if isinstance(config, dict) and config.get("data_files")
    ]


def _find_config(configs: Sequence[dict[str, Any]], subset: str | None) -> dict[str, Any]:
    by_name = {_as_text(config.get("config_name", "default")): config for config in configs}
    if subset is None:
        defaults = [config for config in configs if config.get("default")]
        if defaults or "default" in by_name or len(configs) == 1:
            return (defaults or [by_name.get("default", configs[0])])[0]
        raise ValueError(f"it has several subsets; choose one of: {_join(sorted(by_name))}")
    if subset not in by_name:
        raise ValueError(f"it has no subset {subset!r}; its subsets are: {_join(sorted(by_name))}")
    return by_name[subset]


def _select_by_config(names: Sequence[str], config: dict[str, Any], split: str) -> list[str]:
    data_files, folder = config["data_files"], config.get("data_dir")
    entries = data_files if isinstance(data_files, list) else [data_files]
    patterns: list[str] = []
    for entry in entries:
        of_split, path = (
            (entry.get("split"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        )
        if of_split == split:
            patterns += [_as_text(pattern) for pattern in (path if isinstance(path, list) else [path])]
    if folder:
        patterns = [f"{_as_text(folder).strip('/')}/{pattern}" for pattern in patterns]
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _as_text(value: Any) -> str:
    """Return a value of the metadata as text, or nothing for a list, which aliases could make endless."""
    return str(value) if isinstance(value, str | int | float) else ""


def _select_by_name(names: Sequence[str], split: str) -> list[str]:
    """Select by a word of the path, as in `data/train-00000-of-00001.parquet`; without any, all are train."""
    by_split = {word: [name for name in names if _has_word(name, SPLIT_WORDS[word])] for word in SPLIT_WORDS}
    if not any(by_split.values()):
        return list(names) if split == "train" else []
    return by_split.get(split) or [name for name in names if _has_word(name, re.escape(split))]


def _has_word(name: str, word: str) -> bool:
    return re.search(rf"(^|[\W_])({word})([\W_]|$)", name) is not None


def _join(names: Sequence[str]) -> str:
    return join_names(names, 5) or "none"
