"""The score of a completion by a grader of any kind."""

import json
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any

from trainers.configs.graders import (
    GraderConfig,
    ModelGraderConfig,
    MultiGrader,
    PythonGrader,
    StringCheckGrader,
    StringOperation,
    TextSimilarityGrader,
    list_graders,
    parse_template,
)
from trainers.configs.graders.formulas import Formula, FormulaUndefined
from trainers.configs.graders.templates import SampleUnsuitable, VariableMissing
from trainers.graders.embeddings import cosine_similarity
from trainers.graders.model_graders import ModelGraderClient, model_grader_signature
from trainers.graders.result import GradeFailed, GraderErrors, GradeResult, Sample, join_usage
from trainers.graders.sandbox import require_sandbox, run_python_grader
from trainers.graders.similarity import (
    is_installed,
    similarity_package,
    similarity_signature,
    text_similarity,
)
from trainers.metrics.judge.requests import EndpointClient
from trainers.metrics.signatures import short_hash
from trainers.runtime.endpoints import read_endpoint
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError


class GraderPackageMissing(ProgramError):
    """This host lacks the package of a grader."""

    code = ErrorCode.capability_missing


def grade(grader: GraderConfig, item: Mapping[str, Any], sample: Sample) -> GradeResult:
    """Return the score of one completion; raises as `GraderRunner`."""
    with closing(GraderRunner(grader)) as runner:
        return runner.grade(item, sample)


class GraderRunner:
    """A grader with the connections to its models, for use by several threads.

    A fault of one completion or row is in its result. Raises ProgramError for a fault that every completion
    would have: ConfigInvalid for an unknown address, JudgeFailed for an endpoint that rejects every request,
    GraderPackageMissing or SandboxUnavailable for what the host lacks.
    """

    def __init__(self, grader: GraderConfig, max_connections: int = 8) -> None:
        self._grader = grader
        self._clients: dict[str, EndpointClient] = {}
        self._models: dict[int, ModelGraderClient] = {}
        check_grader_host(grader)
        for one in list_graders(grader):
            if isinstance(one, ModelGraderConfig):
                self._models[id(one)] = ModelGraderClient(one, self._connect(one.model, max_connections))
            elif isinstance(one, TextSimilarityGrader) and one.embedding_model is not None:
                self._connect(one.embedding_model, max_connections)

    def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            client.close()

    def grade(self, item: Mapping[str, Any], sample: Sample) -> GradeResult:
        """Return the score of one completion."""
        return self._grade(self._grader, {"item": item, "sample": sample.values})

    def grade_all(
        self, pairs: Sequence[tuple[Mapping[str, Any], Sample]], concurrency: int = 8
    ) -> Generator[GradeResult]:
        """Yield the scores of many completions in their order, several at once."""
        pool = ThreadPoolExecutor(min(concurrency, max(1, len(pairs))))
        try:
            yield from pool.map(lambda pair: self.grade(*pair), pairs)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _grade(self, grader: GraderConfig, values: Mapping[str, Any]) -> GradeResult:
        started = time.monotonic()
        try:
            result = self._compute(grader, values)
        except GradeFailed as error:
            result = _failed(grader, str(error), error.errors)
            result = replace(result, usage=error.usage)
        except VariableMissing as error:
            result = _failed(grader, str(error), GraderErrors(invalid_variable_error=True))
        except SampleUnsuitable as error:
            result = _failed(grader, str(error), GraderErrors(sample_parse_error=True))
        passed = None if result.score is None else result.score >= grader.threshold
        return replace(result, passed=passed, seconds=round(time.monotonic() - started, 6))

    def _compute(self, grader: GraderConfig, values: Mapping[str, Any]) -> GradeResult:
        match grader:
            case StringCheckGrader():
                texts = [parse_template(text).render(values) for text in (grader.input, grader.reference)]
                return _scored(grader, float(_compare(grader.operation, *texts)))
            case TextSimilarityGrader():
                texts = [parse_template(text).render(values) for text in (grader.input, grader.reference)]
                return _scored(grader, self._similarity(grader, *texts))
            case ModelGraderConfig():
                return self._models[id(grader)].grade(values)
            case PythonGrader():
                return _scored(grader, run_python_grader(grader, values))
            case MultiGrader():
                return self._combine(grader, values)
        raise AssertionError(grader.type)

    def _similarity(self, grader: TextSimilarityGrader, text: str, reference: str) -> float:
        if grader.embedding_model is not None:
            return cosine_similarity(self._clients[str(grader.embedding_model)], text, reference)
        return text_similarity(grader.evaluation_metric, text, reference)

    def _combine(self, grader: MultiGrader, values: Mapping[str, Any]) -> GradeResult:
        results = {name: self._grade(one, values) for name, one in grader.graders.items()}
        scores = {name: result.score for name, result in results.items() if result.score is not None}
        combined = GradeResult(
            grader.name,
            grader.type,
            None,
            sub_scores={name: result.score for name, result in results.items()},
            usage=join_usage([result.usage for result in results.values()]),
        )
        failed = {name: result for name, result in results.items() if result.score is None}
        if failed:
            errors = GraderErrors()
            for result in failed.values():
                errors = errors.join(result.errors)
            reason = "; ".join(f"{name}: {result.reason}" for name, result in failed.items())
            return replace(combined, errors=errors, reason=reason)
        try:
            return replace(combined, score=Formula(grader.calculate_output).evaluate(scores))
        except FormulaUndefined as error:
            return replace(combined, errors=GraderErrors(formula_parse_error=True), reason=str(error))

    def _connect(self, model: Any, max_connections: int) -> EndpointClient:
        name = str(model)
        if name not in self._clients:
            self._clients[name] = EndpointClient(f"model {name}", read_endpoint(model), max_connections)
        return self._clients[name]


def check_grader_host(grader: GraderConfig) -> None:
    """Raise a ProgramError if this host lacks a package or the sandbox that the grader needs."""
    for one in list_graders(grader):
        if isinstance(one, PythonGrader):
            require_sandbox()
        elif isinstance(one, TextSimilarityGrader) and one.embedding_model is None:
            package = similarity_package(one.evaluation_metric)
            if not is_installed(package):
                raise GraderPackageMissing(
                    f"text_similarity by {one.evaluation_metric} needs the package {package}, which this "
                    "host lacks.",
                    "Install the extra `evaluation` where graders run, as in the image of the workers.",
                )


def grader_signature(grader: GraderConfig) -> str:
    """Return everything on which the scores of a grader depend besides the texts, for signatures."""
    match grader:
        case StringCheckGrader():
            return f"string_check|{grader.operation}|{_hash_templates(grader)}"
        case TextSimilarityGrader():
            model = "" if grader.embedding_model is None else f"|model:{grader.embedding_model}"
            metric = similarity_signature(grader.evaluation_metric)
            return f"text_similarity|{metric}{model}|{_hash_templates(grader)}"
        case ModelGraderConfig():
            return f"{grader.type}|{model_grader_signature(grader)}"
        case PythonGrader():
            return f"python|source:{short_hash(grader.source)}"
        case MultiGrader():
            parts = (f"{name}=({grader_signature(one)})" for name, one in grader.graders.items())
            return f"multi|{grader.calculate_output}|{'|'.join(parts)}"
    raise AssertionError(grader.type)


def _compare(operation: StringOperation, text: str, reference: str) -> bool:
    match operation:
        case StringOperation.eq:
            return text == reference
        case StringOperation.ne:
            return text != reference
        case StringOperation.like:
            return reference in text
        case StringOperation.ilike:
            return reference.casefold() in text.casefold()


def _hash_templates(grader: StringCheckGrader | TextSimilarityGrader) -> str:
    return f"templates:{short_hash(json.dumps([grader.input, grader.reference]))}"


def _scored(grader: GraderConfig, score: float) -> GradeResult:
    return GradeResult(grader.name, grader.type, score)


def _failed(grader: GraderConfig, reason: str, errors: GraderErrors) -> GradeResult:
    return GradeResult(grader.name, grader.type, None, reason=reason, errors=errors)
