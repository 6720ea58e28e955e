"""The tasks of a run: stock tasks and own ones, on datasets of ours or on data of the hub."""

import contextlib
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, NoReturn

import datasets
import evaluate
import httpx2
import jinja2
import lm_eval.utils
from huggingface_hub import constants
from jinja2.sandbox import ImmutableSandboxedEnvironment

from trainers.configs.stages.harness.lm_eval import HarnessBackend, LmEvalConfig
from trainers.configs.stages.harness.tasks import HarnessTask
from trainers.lm_eval import stock_tasks
from trainers.lm_eval.definitions import render_rows, task_config
from trainers.lm_eval.local_data import build_members, make_task_config
from trainers.modeling.hub import HubUnreachable, probe_hub
from trainers.rendering.template_renderer import TemplateRenderer
from trainers.runtime.errors import ConfigInvalid, DatasetInvalid, first_line

MAX_REASON_CHARACTERS = 200

TaskDict = dict[str, Any]
"""What lm-eval's `TaskManager.load` returns: tasks, groups and the members of groups, by name."""


class TaskRefused(ConfigInvalid):
    """A task of lm-eval that would run code of others, or that the backend cannot run."""


def load_tasks(config: LmEvalConfig) -> TaskDict:
    """Return the tasks with their data and settings.

    Raises:
        TaskUnknown: lm-eval has no such task.
        TaskRefused: The task runs generated code, or needs log-probabilities that the backend lacks.
        TaskTemplateInvalid: A template of an own task cannot be used.
        ConfigInvalid: The data lacks a split that the task reads.
        DatasetInvalid: A row lacks a field that the task reads.
        HubUnreachable: The data is on the hub, which does not respond, and is not in this host's cache.
    """
    _confine_lm_eval()
    renderer = TemplateRenderer()
    try:
        specs = [_make_spec(task, renderer) for task in config.tasks]
    finally:
        renderer.close()
    names = [spec for spec in specs if isinstance(spec, str)]
    manager = stock_tasks.open_manager(names)
    with _hub_errors(config) if config.needs_hub else contextlib.nullcontext(), _row_errors(config):
        built = [build_members(spec) if isinstance(spec, HarnessTask) else [spec] for spec in specs]
        loaded: TaskDict = dict(manager.load([each for found in built for each in found]))
    for name, task in loaded["tasks"].items():
        _configure(name, task, config)
    return loaded


def _confine_lm_eval() -> None:
    """Render the templates of all tasks in a sandbox, and let no task fetch code from a hub."""
    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters.update(lm_eval.utils.env.filters)
    lm_eval.utils.env = environment
    evaluate.load = _refuse_metric


def _refuse_metric(name: str, *_: Any, **__: Any) -> NoReturn:
    raise TaskRefused(
        f"A task asks for the metric {name!r}, which is code on the hub.",
        "Choose a task whose metrics are part of lm-eval.",
    )


def _make_spec(task: HarnessTask, renderer: TemplateRenderer) -> str | dict[str, Any] | HarnessTask:
    """Return the config of a task, the name of a group or tag, or the group if it has data of ours."""
    if task.definition is not None:
        definition = task.definition
        return make_task_config(
            task, task_config(definition), lambda rows: render_rows(definition, rows, renderer)
        )
    path = stock_tasks.find_file(task.label)
    config = {} if path is None else stock_tasks.load_config(path)
    if path is None or "group" in config or isinstance(config.get("task"), list):
        return task.label if task.data is None else task
    return config if task.data is None else make_task_config(task, config)


def _configure(name: str, task: Any, config: LmEvalConfig) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise TaskRefused(
            f"The task {name} executes the code that the model writes.",
            "Choose another task: this one needs a sandbox.",
        )
    generates = task.get_config("output_type") == "generate_until"
    if not generates and config.backend is HarnessBackend.chat_completions:
        raise TaskRefused(
            f"The task {name} compares log-probabilities, which chat_completions does not return.",
            "Set backend to completions or hf.",
        )
    if generates and config.max_new_tokens is not None:
        task.set_config(key="generation_kwargs", value={"max_gen_toks": config.max_new_tokens}, update=True)
    # A task that sets 0 itself is meant without examples.
    if config.num_fewshot is not None and task.get_config("num_fewshot") != 0:
        task.set_config(key="num_fewshot", value=config.num_fewshot)
    elif task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=config.seed)
    n_shots = task.get_config("num_fewshot")
    if n_shots and not _has_examples(task):
        raise ConfigInvalid(
            f"The task {name} shows {n_shots} examples, but its data has only the rows that are scored.",
            "Give data for the split with its examples, such as train, or set num_fewshot to 0.",
        )


def check_response_lengths(loaded: Mapping[str, Any], lm: Any) -> None:
    """Raise ConfigInvalid for a task whose responses may be as long as the context of a model of lm-eval."""
    context = getattr(lm, "max_length", None)
    for name, task in loaded["tasks"].items():
        if context is None or task.get_config("output_type") != "generate_until":
            continue
        longest = (task.get_config("generation_kwargs") or {}).get("max_gen_toks") or lm.max_gen_toks
        if longest >= context:
            raise ConfigInvalid(
                f"The task {name} generates up to {longest} tokens, which leaves no room for a prompt in the "
                f"model's context of {context}.",
                "Set max_new_tokens to fewer.",
            )


def _has_examples(task: Any) -> bool:
    fewshot = task.config.fewshot_config
    has_own = getattr(fewshot, "split", None) is not None or getattr(fewshot, "samples", None) is not None
    return bool(has_own or task.has_training_docs() or (task.has_test_docs() and task.has_validation_docs()))


@contextlib.contextmanager
def _row_errors(config: LmEvalConfig) -> Iterator[None]:
    """Convert the errors of a task whose rows lack what it reads."""
    try:
        yield
    except (jinja2.UndefinedError, KeyError, ValueError, TypeError, IndexError, AssertionError) as error:
        if isinstance(error, ConnectionError):
            raise
        names = ", ".join(task.label for task in config.tasks)
        raise DatasetInvalid(
            f"The rows of a task ({names}) do not have the fields that it reads: {type(error).__name__}: "
            f"{first_line(error)}.",
            "Name the fields as the task's own data does, or write a definition for yours.",
        ) from error


@contextlib.contextmanager
def _hub_errors(config: LmEvalConfig) -> Iterator[None]:
    """Look for the hub first, so that one that is away costs seconds: the client would repeat for minutes."""
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _probe()
    if reason is not None:
        # Data that an earlier run has downloaded is still usable.
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    except (OSError, datasets.exceptions.DatasetsError) as error:
        names = ", ".join(task.label for task in config.tasks if task.data is None)
        raise HubUnreachable(
            f"The data of {names} is on the hub {constants.ENDPOINT}, which cannot be reached: "
            f"{reason or first_line(error)[:MAX_REASON_CHARACTERS]}.",
            "Give the task's rows as datasets in `data`, or run the stage on a worker that reaches the hub.",
        ) from error


def _probe() -> str | None:
    """Return why the hub does not respond, or None."""
    try:
        status = probe_hub()
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return first_line(error)
    # A proxy responds in place of a hub that it does not reach.
    return f"it responds with status {status}" if status >= HTTPStatus.BAD_REQUEST else None


def count_rows(loaded: Mapping[str, Any], max_rows: int | None) -> dict[str, int]:
    """Return the number of rows that each task scores."""
    sizes = {name: len(task.eval_docs) for name, task in loaded["tasks"].items()}
    return {name: min(size, max_rows or size) for name, size in sizes.items()}


def count_requests(loaded: Mapping[str, Any], max_rows: int | None) -> int:
    """Return the number of requests of all tasks, for progress; of choices, as many as the first row has."""
    total = 0
    for name, n_rows in count_rows(loaded, max_rows).items():
        task = loaded["tasks"][name]
        is_choice = task.get_config("output_type") == "multiple_choice"
        choices = task.doc_to_choice(task.eval_docs[0]) if is_choice else [None]
        total += n_rows * len(choices) * (task.get_config("repeats") or 1)
    return total
