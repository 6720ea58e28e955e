"""Job specs of the command line: files with `${ENV}`, options `--set`, and what names mean."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from app.client.api.errors import ClientError, ObjectMissing, WorkFailed
from app.client.api.modes import Blocking
from app.client.clients import Client
from app.client.commands.data import print_report, push_file
from app.client.commands.output import count_of, note
from app.client.views.jobs import RemoteJob

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


class SpecUnusable(ClientError):
    """A spec or an option of a command cannot be used."""


class DataUnusable(WorkFailed):
    """The file has faults."""


def load_spec(path: Path) -> dict[str, Any]:
    """Return the job spec of a YAML or JSON file, with `${NAME}` and `${NAME:-default}` expanded in YAML."""
    import yaml

    from trainers.configs.parsing.yaml_values import load_yaml
    from trainers.configs.stage_config import expand_text, expand_variables

    try:
        values = load_yaml(path.read_text(encoding="utf-8"))
        if path.suffix != ".json" and isinstance(values, dict):
            # The number of a pull request and the hash of a commit are texts here.
            texts = {"name": values.pop("name", path.stem), "labels": values.pop("labels", None) or {}}
            values = {**expand_variables(values), **_map_texts(texts, expand_text)}
    except OSError as error:
        raise SpecUnusable(f"The file {path} cannot be read: {error.strerror}.") from error
    except (ValueError, yaml.YAMLError) as error:
        raise SpecUnusable(f"{path} is not a job spec: {error}.", "Correct the file.") from error
    if not isinstance(values, dict) or not isinstance(values.get("stages"), list):
        raise SpecUnusable(
            f"{path} is not a job spec: it must be a mapping with the list `stages`.",
            "docs/guides/command-line.md has an example.",
        )
    return {"name": path.stem, **values}


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {key: _map_texts(item, change) for key, item in value.items()}
    return change(value) if isinstance(value, str) else value


def upload_files(client: Client, value: Any, folder: Path) -> Any:
    """Return a spec in which each dataset that is a file, relative to the folder, is an uploaded dataset."""
    if isinstance(value, dict):
        return {
            key: resolve_data(client, str(folder / item))
            if key.endswith("dataset") and isinstance(item, str) and _is_data_file(item)
            else upload_files(client, item, folder)
            for key, item in value.items()
        }
    return [upload_files(client, item, folder) for item in value] if isinstance(value, list) else value


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Return `field=value` texts as a mapping: dots lead into objects, and values are YAML."""
    import yaml

    from trainers.configs.parsing.yaml_values import load_yaml

    found: dict[str, Any] = {}
    for setting in settings:
        path, separator, value = setting.partition("=")
        if not separator or not path:
            raise SpecUnusable(
                f"--set {setting!r} has no value.", "Write --set FIELD=VALUE, such as max_steps=20."
            )
        *parents, name = path.split(".")
        target = found
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise SpecUnusable(f"--set {setting!r} contradicts an earlier --set of {parent!r}.")
        try:
            target[name] = load_yaml(value)
        except yaml.YAMLError as error:
            raise SpecUnusable(f"The value of --set {setting!r} is not YAML.", "Quote it.") from error
    return found


def parse_labels(labels: Sequence[str]) -> dict[str, str]:
    """Return `key=value` texts as a mapping."""
    pairs = [label.partition("=") for label in labels]
    for key, separator, _ in pairs:
        if not separator:
            raise SpecUnusable(f"--label {key!r} has no value.", "Write --label KEY=VALUE.")
    return {key: value for key, _, value in pairs}


def resolve_data(client: Client, data: str) -> str:
    """Return the name of a dataset; a file is uploaded first. Raises DataUnusable."""
    path = Path(data)
    if not path.is_file():
        if _is_data_file(data):
            raise SpecUnusable(
                f"There is no file {data}.", "`tunesmith data list` shows the uploaded datasets."
            )
        return data
    dataset = push_file(client, path)
    if not dataset.trainable:
        if dataset.report is not None:
            print_report(data, dataset.report)
        raise DataUnusable(
            f"{data} has {count_of(dataset.fault_count, 'fault')}.",
            "Correct the lines and repeat the command.",
        )
    note(f"Uploaded {path} as {dataset.name} ({dataset.id}): {count_of(dataset.row_count, 'row')}.")
    return dataset.id


def resolve_model(client: Client, model: str) -> str:
    """Return what a spec calls a model: of a job, or of the name of one, the model that it has produced."""
    if model.startswith("job_"):
        found = client.jobs.get(model).model_id
        if found is None:
            raise SpecUnusable(f"{model} has produced no model.", "Name a model: `tunesmith models`.")
        return found
    if "/" in model or model.startswith("model_"):
        return model
    for one in client.models.list(name=model):
        note(f"Using {one.id}, the newest model called {model}.")
        return one.id
    for job in client.jobs.list(name=model, limit=1):
        if (found := client.jobs.get(job.id).model_id) is not None:
            note(f"Using {found}, the model of {job.id} ({model}).")
            return found
    return model


def resolve_job(client: Client, job: str) -> RemoteJob[Blocking]:
    """Return the job with an id, the newest with a name, or for `last` the newest of all."""
    if job.startswith("job_"):
        return client.jobs.get(job)
    if job.startswith("run_"):
        return client.jobs.get(client.jobs.run(job).job_id)
    name = None if job == "last" else job
    for one in client.jobs.list(name=name, limit=1):
        return client.jobs.get(one.id)
    if name is None:
        hint = "Start one: `tunesmith train DATA --base MODEL`, or `tunesmith apply job.yaml`."
        raise ObjectMissing("There is no job yet.", hint, status=404)
    raise ObjectMissing(f"There is no job called {job}.", "List the jobs with `tunesmith jobs`.", status=404)


def _is_data_file(name: str) -> bool:
    return Path(name).suffix in DATA_SUFFIXES
