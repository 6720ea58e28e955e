"""Complete every held-out row by one or several models, score the completions, and compare the models.

Responses come from running engines, and each is appended to `responses.jsonl` at once: the same command on
the same run directory asks for the missing ones only. A worker starts the engines of a job. By hand:

    python -m serving --engine hf --model BASE --adapter tuned=PATH --port 8001
    python -m trainers.evaluate --config evaluate.yaml --run-dir runs/first-score

where the config has `engines: {model: {url: http://127.0.0.1:8001, model: tuned}}`.

Predictions that exist already are scored without a model:

    python -m trainers.evaluate --predictions rows.jsonl --metric bleu --metric exact_match
"""

import json
import logging
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from trainers.configs.base import DeployedModel, EndpointModel, StoredResponses
from trainers.configs.stages.evaluate import EvaluateConfig
from trainers.evaluation.checkpoints import CompletionProgress, restore_completions
from trainers.evaluation.contamination import describe_contamination, find_contamination
from trainers.evaluation.identity import identify
from trainers.evaluation.provenance import (
    describe_model,
    describe_provenance,
    explain_differences,
    read_engine,
)
from trainers.evaluation.reference_scores import score_references
from trainers.evaluation.response_log import RESPONSES, ResponseLog
from trainers.evaluation.results import EarlyStopResult, EvaluationResult, ModelScores, PairedDifference
from trainers.evaluation.row_completions import Completion, SampleRequest, Sampling, complete
from trainers.evaluation.scored_rows import (
    evaluated_row,
    list_clusters,
    load_scored_rows,
    read_stored_samples,
)
from trainers.evaluation.scores import Values, list_rows, list_scores, measure, publish_rows
from trainers.evaluation.slices import score_slices
from trainers.metrics.metric import ModelContext
from trainers.metrics.table import check_host
from trainers.rendering.render import PromptCompletion, dataset_path
from trainers.reports.evaluation_folder import write_evaluation_folder
from trainers.runtime.endpoints import Endpoint, read_endpoint
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ConfigInvalid, DatasetInvalid, ProgramError
from trainers.runtime.events import MAX_METRICS, EventWriter
from trainers.statistics.expected_power import describe_expected_power

ROWS = "rows.jsonl"
# No two samples of an evaluation share a seed, whatever their number: a file has fewer rows than this.
SEED_STRIDE = 10_000_019

logger = logging.getLogger("trainers")


class EveryRequestRejected(ProgramError):
    """A model has no response at all."""

    code = ErrorCode.every_request_rejected


def run(config: EvaluateConfig, run_dir: Path, events: EventWriter) -> dict[str, Any] | None:
    """Generate what is missing, score all responses, and return the result.

    Returns None if the engines of some models are started later.
    """
    pairs = _load_rows(config)
    output = run_dir / RESPONSES
    restore_completions(output)
    # A worker names the origins; a hub model without a revision may have a new commit at the next attempt.
    log = ResponseLog(output, identify(config), discards_others=bool(config.origins))
    with closing(log):
        progress = CompletionProgress(output, events, len(pairs) * config.samples * len(config.models))
        progress.report(len(log))

        def complete_rows(rows: list[PromptCompletion]) -> None:
            for role in config.models:
                if role not in config.pending:
                    _complete_model(role, config, rows, log, progress)

        if config.early_stop is None:
            complete_rows(pairs)
            return None if config.pending else _score(config, pairs, log, run_dir, events)
        # Importing numpy takes time that other evaluations need not spend.
        from trainers.evaluation.early_stop import grow

        grown = grow(config, pairs, log, complete_rows)
        if grown is None or config.pending:
            return None
        return _score(config, grown.pairs, log, run_dir, events, grown.result)


def plan(config: EvaluateConfig) -> dict[str, Any]:
    """Return the resolved plan of a run, without sending a request."""
    pairs = _load_rows(config)
    return {
        "stage": "evaluate",
        "rows": len(pairs),
        "models": list(config.models),
        "completions": len(pairs) * config.samples * len(config.models),
        "metrics": [metric.label for metric in config.metrics],
        "engine": config.engine,
        "max_new_tokens": config.max_new_tokens,
        "concurrency": config.concurrency,
        "power": describe_expected_power(len(pairs)),
    }


def _load_rows(config: EvaluateConfig) -> list[PromptCompletion]:
    """Return the rows; raises as `load_scored_rows`, or for a metric that this host cannot compute."""
    pairs = load_scored_rows(config)
    check_host(config.metrics, [evaluated_row(pair) for pair in pairs])
    return pairs


def list_missing(
    config: EvaluateConfig, role: str, pairs: list[PromptCompletion], log: ResponseLog
) -> list[SampleRequest]:
    """Return the requests of a model that have no response yet, the longest first.

    Rows of similar length are decoded together, and no long one is left to run alone at the end.
    """
    ordered = sorted(pairs, key=lambda pair: -len(json.dumps(pair.prompt, ensure_ascii=False)))
    return [
        SampleRequest(pair, _seed(config, pair.row, sample), sample)
        for pair in ordered
        for sample in range(config.samples)
        if (role, pair.row, sample) not in log
    ]


def _complete_model(
    role: str,
    config: EvaluateConfig,
    pairs: list[PromptCompletion],
    log: ResponseLog,
    progress: CompletionProgress,
) -> None:
    requests = list_missing(config, role, pairs, log)
    unscored = [
        pair for pair in pairs if config.scores_references and pair.row not in log.list_references(role)
    ]
    if not requests and not unscored:
        return
    model = config.models[role]
    if isinstance(model, StoredResponses):
        _copy_stored(role, model, requests, log)
        progress.report(len(log))
        return
    endpoint = _find_endpoint(role, config)
    log.add_engine(role, read_engine(role, config, endpoint))
    sampling = Sampling(
        config.max_new_tokens, config.temperature, config.top_p, config.tools, config.chat_options
    )

    def record(request: SampleRequest, completion: Completion) -> None:
        log.add((role, request.prompt.row, request.sample), completion)

    completed = complete(requests, endpoint, sampling, config.concurrency, in_order=False, record=record)
    with closing(completed):
        for _ in completed:
            progress.report(len(log))
    with closing(score_references(unscored, endpoint, config.concurrency)) as scored:
        for row, logprobs in scored:
            log.add_reference(role, row, logprobs)
    logger.info("%s: %d responses", role, len(requests))


def _copy_stored(role: str, model: StoredResponses, requests: list[SampleRequest], log: ResponseLog) -> None:
    """Add the responses in a field of the rows to the log; raises DatasetInvalid for too few samples."""
    log.add_engine(role, {"kind": "stored", "name": str(model)})
    for request in requests:
        row, samples = request.prompt.row, read_stored_samples(request.prompt.source, model.field)
        if request.sample >= len(samples):
            count = "1 response" if len(samples) == 1 else f"{len(samples)} responses"
            raise DatasetInvalid(
                f"Row {row} has {count} in `{model.field}`, which is fewer than `samples`.",
                "Set `samples` to the number of responses of each row.",
            )
        calls = request.prompt.source.get(f"{model.field}_tool_calls")
        stored = {"tool_calls": calls} if isinstance(calls, list) else {}
        log.add((role, row, request.sample), {"prediction": samples[request.sample], **stored})


def _seed(config: EvaluateConfig, row: int, sample: int) -> int:
    return (config.seed + row + SEED_STRIDE * sample) % 2**32


def _find_endpoint(role: str, config: EvaluateConfig) -> Endpoint:
    model = config.models[role]
    if isinstance(model, EndpointModel | DeployedModel):
        return read_endpoint(model)
    engine = config.engines.get(role)
    if engine is None:
        raise ConfigInvalid(
            f"No engine is named for {role!r}: this program sends requests to running engines.",
            f"Start one with `python -m serving --engine {config.engine} --model … --port 8001`, and set "
            f"engines: {{{role}: {{url: http://127.0.0.1:8001, model: …}}}}.",
        )
    return Endpoint(f"{engine.url.rstrip('/')}/v1", engine.model, is_engine=True)


def _score(
    config: EvaluateConfig,
    pairs: list[PromptCompletion],
    log: ResponseLog,
    run_dir: Path,
    events: EventWriter,
    early_stop: EarlyStopResult | None = None,
) -> dict[str, Any]:
    # Importing scipy takes a second, which a program that only generates need not spend.
    from trainers.statistics.comparison import compare_models

    clusters = list_clusters(config.clusters, pairs)
    numbers = [pair.row for pair in pairs]
    responses = {role: log.list_samples(role, numbers, config.samples) for role in config.models}
    _require_responses(responses, log)
    tool_calls = {role: log.list_tool_calls(role) for role in responses}
    ends = {role: log.list_ends(role) for role in responses}
    values: dict[str, Values] = {
        role: measure(
            config.metrics,
            pairs,
            responses[role],
            ModelContext(role, run_dir),
            {other: samples for other, samples in responses.items() if other != role},
            tool_calls[role],
            log.list_references(role),
        )
        for role in responses
    }
    publish_rows(run_dir / ROWS, list_rows(pairs, responses, values, tool_calls, ends))
    models = [
        ModelScores(
            role=role,
            model=describe_model(role, config),
            scores=list_scores(values[role], responses[role], clusters),
            provenance=describe_provenance(role, config, pairs, log, values[role]),
        )
        for role in responses
    ]
    contamination = find_contamination(dataset_path(config.dataset), config.origins)
    slices = score_slices(config.slices, pairs, values, clusters)
    warnings = [
        *slices.warnings,
        *describe_contamination(contamination),
        *_describe_conditions(models),
        *_describe_failures(models, log),
        *(early_stop.warnings if early_stop is not None else []),
    ]
    differences = compare_models(values, clusters=clusters, seed=config.seed)
    result = EvaluationResult(
        stage="evaluate",
        n=len(pairs),
        models=models,
        differences=differences,
        warnings=warnings,
        details={
            "contamination": [one.model_dump(mode="json") for one in contamination],
            "slices": [one.model_dump(mode="json") for one in slices.slices],
            "power": _describe_power(differences, values),
            **({"early_stop": early_stop.model_dump(mode="json")} if early_stop is not None else {}),
        },
        metrics=[metric.model_dump(mode="json", exclude={"environment"}) for metric in config.metrics],
        clusters=config.clusters,
        rows=ROWS,
    )
    _report(result, len(pairs) * config.samples * len(models), events)
    write_evaluation_folder(run_dir, result)
    return result.model_dump(mode="json")


def _report(result: EvaluationResult, total: int, events: EventWriter) -> None:
    """Write the warnings and the scores as events."""
    for warning in result.warnings:
        events.write_warning("evaluation_weakened", warning)
    scores = [(f"{one.role}/{score.metric}", score.value) for one in result.models for score in one.scores]
    events.write_metrics(total, total, dict(scores[:MAX_METRICS]))


def _describe_power(differences: list[PairedDifference], values: dict[str, Values]) -> list[str]:
    from trainers.statistics.power import describe_power

    return [
        f"{one.metric} against {one.other!r}: "
        + describe_power(one.n, one.detectable, is_share=values[one.role][one.metric].is_share)
        for one in differences
    ]


def _describe_conditions(models: list[ModelScores]) -> list[str]:
    """Return a warning for each model that was evaluated under other conditions than the first one."""
    found = (explain_differences(models[0], other, within_evaluation=True) for other in models[1:])
    return [warning for warning in found if warning is not None]


def _describe_failures(models: list[ModelScores], log: ResponseLog) -> list[str]:
    """Return a warning for each model with rejected requests, which score as empty responses."""
    failed = {model.role: model.scores[0].failed for model in models if model.scores}
    return [
        f"{count} of the rows have no response of {role!r}: the engine rejected the requests. Its first "
        f"reason: {log.get_first_error(role)} The field `error` in {RESPONSES} contains all of them."
        for role, count in failed.items()
        if count
    ]


def _require_responses(responses: Mapping[str, dict[int, list[str | None]]], log: ResponseLog) -> None:
    """Raise EveryRequestRejected for a model without any response, whose scores would say nothing of it."""
    for role, by_row in responses.items():
        if all(sample is None for samples in by_row.values() for sample in samples):
            raise EveryRequestRejected(
                f"The engine rejected the request of every row for {role!r}: {log.get_first_error(role)}",
                "Correct what the reason names, such as a system prompt or rows that are too long for the "
                "model, and retry the job.",
            )


if __name__ == "__main__":
    if any(argument.partition("=")[0] == "--predictions" for argument in sys.argv[1:]):
        from trainers.evaluation.predictions.score_file import main

        main()
    from trainers.runtime.program import run_program

    run_program(EvaluateConfig, run, plan)
