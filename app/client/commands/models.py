"""Models: listing, downloading, serving, and talking to them."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from app.client.api.errors import ObjectMissing
from app.client.clients import Client
from app.client.commands.data import TransferBar, find_dataset
from app.client.commands.output import (
    DetachOption,
    JsonOption,
    connect,
    err,
    format_age,
    format_bytes,
    note,
    out,
    print_json,
    print_table,
)
from app.client.commands.specs import SpecUnusable, parse_settings, resolve_model
from app.client.views.aliases import (
    AliasRecord,
    AliasTargetRecord,
    PromotionRecord,
    PromotionStepRecord,
)

get_cli = typer.Typer(help="Download models, data and files of runs.", no_args_is_help=True)
To = Annotated[Path | None, typer.Option("--to", help="Path to write to.")]


def list_models(
    name: Annotated[str | None, typer.Option(help="Only models with this name.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the models of the registry, newest first."""
    with connect() as client:
        models = list(client.models.list(name=name))
    if as_json:
        print_json(models)
        return
    rows = [
        [one.name, one.kind, one.base, format_bytes(one.size_bytes), format_age(one.created_at), one.id]
        for one in models
    ]
    print_table(["name", "kind", "base", "size", "age", "id"], rows, empty="There is no model.")


def list_deployments(as_json: JsonOption = False) -> None:
    """List the deployments, newest first."""
    with connect() as client:
        found = list(client.deployments.list())
    if as_json:
        print_json(found)
        return
    rows = [
        [one.name, one.status, one.model_id or one.base, one.engine, one.queue, one.waiting_for, one.id]
        for one in found
    ]
    columns = ["name", "status", "model", "engine", "queue", "waits for", "id"]
    print_table(columns, rows, empty="There is no deployment: `tunesmith deploy MODEL NAME`.")


def list_aliases(
    name: Annotated[str | None, typer.Argument(help="Alias, of which its promotions are listed.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the aliases of deployments, or the promotions of one, newest first."""
    with connect() as client:
        if name is None:
            _print_aliases(list(client.aliases.list()), as_json)
        else:
            _print_promotions(name, list(client.aliases.promotions(name)), as_json)


def list_hosts(as_json: JsonOption = False) -> None:
    """List the workers that are alive, and the hosts launched in clouds."""
    with connect() as client:
        workers, hosts = list(client.workers.list()), list(client.hosts.list())
    if as_json:
        print_json({"workers": workers, "hosts": hosts})
        return
    rows = [
        [one.name, one.host, ", ".join(one.queues), len(one.runs), "; ".join(one.problems)] for one in workers
    ]
    print_table(
        ["worker", "host", "queues", "runs", "problems"],
        rows,
        empty="No worker is alive: `tunesmith worker`.",
    )
    if hosts:
        cloud = [[one.id, one.cloud, one.type, one.status, f"{one.spend_usd:.2f} USD"] for one in hosts]
        print_table(["id", "cloud", "type", "status", "spend"], cloud, empty="")


def deploy(
    model: Annotated[str, typer.Argument(help="Model: id, hub id, folder, or the job that produced it.")],
    name: Annotated[str, typer.Argument(help="Name that clients send as `model`.")],
    engine: Annotated[str | None, typer.Option(help="hf, mlx, vllm or sglang. [default: hf]")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Field of the deployment.")
    ] = None,
    detach: DetachOption = False,
    as_json: JsonOption = False,
) -> None:
    """Serve a model under a name, and wait until it is ready."""
    fields: dict[str, Any] = {**({"engine": engine} if engine else {}), **parse_settings(settings or [])}
    with connect() as client:
        deployment = client.deployments.create(name, resolve_model(client, model), **fields)
        note(f"{deployment.id} ({name}) is {deployment.status}")
        if not detach:
            deployment.wait()
    if as_json:
        print_json(deployment)
        return
    out().print(f"{name} is {deployment.status}")
    note(f"Talk to it: tunesmith chat {name}, or any OpenAI client at {client.address.url}/v1")


def undeploy(
    name: Annotated[str, typer.Argument(help="Name or id of the deployment.")], as_json: JsonOption = False
) -> None:
    """Stop a deployment."""
    with connect() as client:
        deployment = (
            client.deployments.get(name)
            if name.startswith("deployment_")
            else next((one for one in client.deployments.list(name=name) if one.stopped_at is None), None)
        )
        if deployment is None:
            raise SpecUnusable(f"No deployment {name} is live.", "List them: tunesmith deployments")
        deployment.stop()
    print_json(deployment) if as_json else out().print(f"{deployment.name} is {deployment.status}")


def chat(
    model: Annotated[str, typer.Argument(help="Name of the deployment.")],
    message: Annotated[str | None, typer.Argument(help="Message; without one, a conversation.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Limit of a completion.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 is greedy.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Talk to a deployed model; a message can also come from standard input."""
    options = {"max_tokens": max_tokens, "temperature": temperature}
    given = {key: value for key, value in options.items() if value is not None}
    turns: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    if message is None and not sys.stdin.isatty():
        message = sys.stdin.read().strip()
    with connect() as client, _explain_training(client, model):
        if message is not None:
            turns.append({"role": "user", "content": message})
            if as_json:
                print_json(client.chat(model, turns, **given).raw)
            else:
                _print_completion(client, model, turns, given)
            return
        note(f"{model}: an empty line or Ctrl-D ends the conversation.")
        while question := _ask():
            turns.append({"role": "user", "content": question})
            try:
                turns.append({"role": "assistant", "content": _print_completion(client, model, turns, given)})
            except KeyboardInterrupt:
                turns.pop()
                out().print()


@get_cli.command("model")
def get_model(
    model: Annotated[str, typer.Argument(help="Id or name of the model, or the job that produced it.")],
    to: To = None,
    merged: Annotated[bool, typer.Option("--merged", help="The whole weights of a merge stage.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Download a model into a folder; repeated after an interruption, it continues."""
    with connect() as client:
        model_id = resolve_model(client, model)
        with TransferBar(f"Downloading {model_id}", sys.stderr.isatty()) as bar:
            folder = client.models.download(model_id, to, merged=merged, progress=bar.report)
    _print_path(folder, as_json, model_id=model_id)


@get_cli.command("data")
def get_data(
    name: Annotated[str, typer.Argument(help="Name or id of the dataset.")],
    to: To = None,
    as_json: JsonOption = False,
) -> None:
    """Download a dataset."""
    with connect() as client:
        dataset = find_dataset(client, name)
        with TransferBar(f"Downloading {dataset.name}", sys.stderr.isatty()) as bar:
            path = dataset.download(to or ".", progress=bar.report)
    _print_path(path, as_json, dataset_id=dataset.id, dataset=dataset.name)


@get_cli.command("file")
def get_file(
    run: Annotated[str, typer.Argument(help="Id of the run, which `tunesmith job --json` shows.")],
    name: Annotated[
        str | None, typer.Argument(help="Name of the file; without one, they are listed.")
    ] = None,
    to: To = None,
    as_json: JsonOption = False,
) -> None:
    """Download a file of a run, such as log.txt, or rows.jsonl of an evaluation."""
    with connect() as client:
        found = client.jobs.run(run)
        if name is None:
            files = found.files()
            if as_json:
                print_json(files)
                return
            rows = [[one.name, format_bytes(one.size_bytes)] for one in files]
            print_table(["name", "size"], rows, empty="The run has no file.")
            return
        _print_path(found.download(name, to or "."), as_json, run_id=found.id, name=name)


@contextmanager
def _explain_training(client: Client, model: str) -> Iterator[None]:
    """Replace the hint of a missing model that the service is still making, as it does with its example."""
    try:
        yield
    except ObjectMissing as missing:
        state = client.readiness().examples
        if f" {model}:" in state:
            missing.hint = f"The service is {state}. It is served afterwards: wait, and repeat the command."
        raise


def _print_aliases(found: Sequence[AliasRecord], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    rows = [
        [one.name, one.version, _describe_shares(one.targets), format_age(one.updated_at)] for one in found
    ]
    empty = "There is no alias: `PUT /api/v1/aliases/NAME` or the page of deployments creates one."
    print_table(["name", "version", "requests go to", "age"], rows, empty=empty)


def _print_promotions(alias: str, found: Sequence[PromotionRecord], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    rows = [
        [
            one.deployment,
            one.status,
            one.outcome,
            _describe_steps(one.steps),
            format_age(one.created_at),
            one.run_id,
        ]
        for one in found
    ]
    columns = ["deployment", "status", "outcome", "steps", "age", "id"]
    print_table(columns, rows, empty=f"No promotion of the alias {alias}.")


def _describe_shares(targets: Sequence[AliasTargetRecord]) -> str:
    return ", ".join(f"{target.deployment} {target.share:.4g}" for target in targets)


def _describe_steps(steps: Sequence[PromotionStepRecord]) -> str:
    return ", ".join(f"{step.share:.4g} {step.state}" for step in steps)


def _print_path(path: Path, as_json: bool, **names: str) -> None:
    """Print where a download is; as JSON, also what it is."""
    print_json({"path": str(path), **names}) if as_json else out().print(str(path))


def _print_completion(
    client: Client, model: str, turns: list[dict[str, str]], options: dict[str, Any]
) -> str:
    console, parts = out(), []
    for text in client.stream_chat(model, turns, **options):
        console.print(text, end="", markup=False)
        parts.append(text)
    console.print()
    return "".join(parts)


def _ask() -> str:
    try:
        return err().input("[bold]> [/]").strip()
    except (EOFError, KeyboardInterrupt):
        return ""
