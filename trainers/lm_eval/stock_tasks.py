"""The task files that come with lm-eval, found by name.

`TaskManager()` parses all 14,000 of them, which takes 7 s, and 46 s on a cold disk. Here their names are
searched as text, in half a second, and only the folders that contain the named tasks are parsed.
"""

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from trainers.runtime.errors import ConfigInvalid

FOLDER = Path(lm_eval.__file__).parent / "tasks"
# The names that a file defines, and the other tasks that a group or a tag refers to.
_NAMED = re.compile(rb"""^["']?(?:task|group)["']?:[ ]*["']?([\w.+-]+)["']?[ ]*(?:#.*)?$""", re.MULTILINE)
_TAGS = re.compile(
    rb"""^["']?tag["']?:((?:[ ]*["']?[\w.+-]+["']?|(?:\s*\n\s*-[ ]*["']?[\w.+-]+["']?)+))""", re.MULTILINE
)
_WORD = re.compile(rb"[\w.+-]*\w[\w.+-]*")
MAX_ROUNDS = 8


class TaskUnknown(ConfigInvalid):
    """lm-eval has no task, group or tag of this name."""


def find_file(name: str) -> Path | None:
    """Return the file that defines a task or group; None for a tag; raises TaskUnknown."""
    files, tags = _index()
    if name in files:
        return files[name][0]
    if name in tags:
        return None
    similar = sorted(other for other in files if other.startswith(name.split("_")[0]))[:8]
    raise TaskUnknown(
        f"lm-eval {lm_eval.__version__} has no task {name!r}.",
        f"Similar names: {', '.join(similar)}." if similar else "Its tasks are listed in its documentation.",
    )


def list_tagged(tag: str) -> list[str]:
    """Return the names of the tasks with a tag."""
    files, tags = _index()
    tagged = set(tags.get(tag, ()))
    return sorted(name for name, paths in files.items() if paths[0] in tagged)


def load_config(path: Path) -> dict[str, Any]:
    """Return the content of a task file with its functions, which are lm-eval's own code."""
    config: dict[str, Any] = load_yaml(path)
    return config


def open_manager(names: list[str]) -> TaskManager:
    """Return a manager that knows the folders of these tasks, groups and tags, and of all their members."""
    files, tags = _index()
    wanted, folders = set(names), set[Path]()
    for _ in range(MAX_ROUNDS):
        found = {path for name in wanted for path in [*files.get(name, ()), *tags.get(name, ())]}
        folders |= {FOLDER / path.relative_to(FOLDER).parts[0] for path in found}
        manager = TaskManager(include_path=sorted(folders), include_defaults=False)
        missing = {
            member
            for entry in manager.task_index.values()
            for member in _members(entry.cfg)
            if member in files and member not in manager.task_index and entry.name in wanted
        }
        if not missing:
            return manager
        wanted |= missing
    return manager


def _members(config: dict[str, Any] | None) -> list[str]:
    listed = (config or {}).get("task")
    entries = listed if isinstance(listed, list) else []
    return [
        entry if isinstance(entry, str) else str(entry.get("task") or entry.get("group")) for entry in entries
    ]


@cache
def _index() -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Return the files by the names that they define, and by the tags that they have."""
    files: dict[str, list[Path]] = {}
    tags: dict[str, list[Path]] = {}
    for folder, _, names in sorted(os.walk(FOLDER)):
        for path in (Path(folder, name) for name in sorted(names) if name.endswith(".yaml")):
            content = path.read_bytes()
            for match in _NAMED.finditer(content):
                files.setdefault(match[1].decode(), []).append(path)
            for match in _TAGS.finditer(content):
                for tag in _WORD.findall(match[1]):
                    tags.setdefault(tag.decode(), []).append(path)
    return files, tags
