"""Rows of ours in place of the public data of lm-eval's tasks, and of the tasks of its groups."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.group import GroupConfig

from trainers.configs.stages.harness.tasks import HarnessTask
from trainers.lm_eval import stock_tasks
from trainers.lm_eval.definitions import Row
from trainers.rendering.render import dataset_path, read_rows
from trainers.runtime.errors import ConfigInvalid, DatasetInvalid, first_line

SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
MAX_NAMED = 5

Splits = Mapping[str, datasets.Dataset]


def make_task_config(
    task: HarnessTask, config: dict[str, Any], convert: Callable[[Sequence[Row]], list[Row]] = list
) -> dict[str, Any]:
    """Return a task's config with our rows in place of its data.

    Raises ConfigInvalid if the task scores none of the splits, and DatasetInvalid for unequal rows.
    """
    splits = {
        split: _make_dataset(task.label, path, convert(rows)) for split, path, rows in _read_splits(task)
    }
    if not _find_scored(config, splits):
        expected = [config[name] for name in ("test_split", "validation_split") if config.get(name)]
        raise ConfigInvalid(
            f"The data of the task {task.label} has the splits {', '.join(splits)}, but the task scores the "
            f"rows of {' or '.join(expected) or 'no split: set test_split in its definition'}.",
            "Name the split in `data`.",
        )
    return _replace_data(config, splits)


def build_members(task: HarnessTask) -> list[Any]:
    """Return the group of a task's name with the tasks that have rows, or the tasks of a tag.

    Raises ConfigInvalid if none has rows, and DatasetInvalid for a row that names no task of the group.
    """
    return _Members(task).build()


class _Members:
    """The tasks of a group or tag, and the rows that belong to each."""

    def __init__(self, task: HarnessTask) -> None:
        self._task = task
        self._rows: dict[str, dict[str, list[Row]]] = {}
        self._paths: dict[str, Path] = {}
        for split, path, rows in _read_splits(task):
            self._paths[split] = path
            for number, row in enumerate(rows, start=1):
                name = row.get(task.member_field)
                if name is None:
                    raise DatasetInvalid(
                        f"Row {number} of {path}, for the group {task.label}, has no field "
                        f"{task.member_field}, which names the task that it belongs to.",
                        "Add the field, or name another one as `member_field`.",
                    )
                self._rows.setdefault(str(name), {}).setdefault(split, []).append(row)
        self._unused = set(self._rows)

    def build(self) -> list[Any]:
        """Return the built group or tasks."""
        built = list(self._build(self._task.label, {}))
        if self._unused:
            named = ", ".join(repr(name) for name in sorted(self._unused)[:MAX_NAMED])
            raise DatasetInvalid(
                f"The group {self._task.label} has no task for rows whose {self._task.member_field} is "
                f"{named}.",
                "Use the names of lm-eval's tasks, or those of the parts of their public data.",
            )
        if not built:
            raise ConfigInvalid(
                f"No task of the group {self._task.label} scores one of the splits {', '.join(self._paths)}.",
                "Name the splits of its tasks in `data`.",
            )
        return built

    def _build(self, name: str, overrides: Mapping[str, Any]) -> Iterator[Any]:
        path = stock_tasks.find_file(name)
        if path is None:
            for member in stock_tasks.list_tagged(name):
                yield from self._build(member, overrides)
            return
        config = stock_tasks.load_config(path)
        if isinstance(config.get("task"), str):
            yield from self._build_task({**config, **overrides, "task": name})
            return
        structure = {key: value for key, value in config.items() if key in GroupConfig.__dataclass_fields__}
        own = {key: value for key, value in config.items() if key not in structure}
        group = Group.from_config(GroupConfig(**structure))
        for member in config.get("task") or []:
            member_name, changes = _split_member(member, name)
            for child in self._build(member_name, {**own, **overrides, **changes}):
                group.add(child)
        if group.get_all_tasks():
            yield group

    def _build_task(self, config: dict[str, Any]) -> Iterator[Any]:
        if "class" in config:
            raise ConfigInvalid(
                f"The task {config['task']} reads its data by code of its own.", "Choose another task."
            )
        names = [name for name in (config["task"], config.get("dataset_name")) if name in self._rows]
        self._unused -= set(names)
        splits = {
            split: _make_dataset(config["task"], self._paths[split], rows)
            for name in names
            for split, rows in self._rows[name].items()
        }
        if not _find_scored(config, splits):
            return
        metadata = config.get("metadata") or {}
        plain = {key: value for key, value in config.items() if key not in ("tag", "group", "task_list")}
        plain["metadata"] = metadata if isinstance(metadata, dict) else {"_metadata": metadata}
        yield ConfigurableTask(config=_replace_data(plain, splits))


def _split_member(member: Any, group: str) -> tuple[str, dict[str, Any]]:
    """Return the name of a group's member and the fields that the group changes."""
    if isinstance(member, str):
        return member, {}
    if isinstance(member.get("task"), str):
        return member["task"], {key: value for key, value in member.items() if key != "task"}
    raise ConfigInvalid(
        f"The group {group} defines groups of its own, which local data is not implemented for.",
        "Name its tasks, each with its own data.",
    )


def _read_splits(task: HarnessTask) -> Iterator[tuple[str, Path, list[Row]]]:
    """Yield the splits of a task's data with their files and rows; raises DatasetInvalid for an empty one."""
    for part in task.data or ():
        path = dataset_path(part.dataset)
        rows = [row for _, row in read_rows(path)]
        if not rows:
            raise DatasetInvalid(f"The dataset {path} of the task {task.label} has no rows.", "Add rows.")
        yield part.split, path, rows


def _find_scored(config: Mapping[str, Any], splits: Splits) -> bool:
    """Return whether the task scores one of the splits."""
    return config.get("test_split") in splits or config.get("validation_split") in splits


def _replace_data(config: Mapping[str, Any], splits: Splits) -> dict[str, Any]:
    """Return the config with these splits, without those that are missing."""
    changes: dict[str, Any] = {name: None for name in SPLITS if config.get(name) not in splits}
    fewshot = dict(config.get("fewshot_config") or {})
    if fewshot.get("split") not in (None, *splits):
        del fewshot["split"]
        changes["fewshot_config"] = fewshot
    # Called with the task's metadata.
    changes["custom_dataset"] = lambda **_: datasets.DatasetDict(splits)
    return {**config, **changes}


def _make_dataset(name: str, path: Path, rows: list[Row]) -> datasets.Dataset:
    names = rows[0].keys()
    for number, row in enumerate(rows, start=1):
        # The data set would have null in their place, and a prompt the text "None".
        if missing := sorted((names - row.keys()) or (row.keys() - names)):
            lacks = number if names - row.keys() else 1
            raise DatasetInvalid(
                f"Row {lacks} of {path}, for the task {name}, has no field {missing[0]}, which others have.",
                "Give all rows the same fields.",
            )
    try:
        return datasets.Dataset.from_list(rows)
    except (pyarrow.ArrowException, TypeError, ValueError) as error:
        raise DatasetInvalid(
            f"The rows of {path} for the task {name} do not have the same types: {first_line(error)}",
            "Give each field one type in all rows.",
        ) from error
