"""The API, and OpenAI's at /v1, keep to their OpenAPI documents, also for requests that do not fit them.

Method: Schemathesis generates requests for each operation, the same number for all, and runs all of its
checks on every response: no status 5xx, no undocumented status, no content that differs from its schema.
"""

import os
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis.strategies import one_of
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from app.keys import service
from app.keys.schemas import KeyCreate
from app.openai_api.application import create_openai_app
from app.settings import Settings
from app.storage.database import transaction
from app.tables import Scope
from tests.application import built_app, configured_app

pytestmark = [
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
    pytest.mark.filterwarnings("default"),
]

# Requests for each operation, valid and invalid ones. Set it for a long run by hand, with one check more:
# whether every valid request is accepted. Hypothesis draws from the constants of all loaded modules, so a
# bound that a schema does not mention would fail the suite now and then.
THOROUGH = "TUNESMITH_SCHEMA_EXAMPLES" in os.environ
EXAMPLES = int(os.environ.get("TUNESMITH_SCHEMA_EXAMPLES", "8"))
# What a reference names, and what the fields of a spec mean together, are no part of a schema.
SEMANTIC = {"/api/v1/jobs", "/api/v1/jobs/dry-run", "/api/v1/jobs/preflight", "/api/v1/deployments"}
SEMANTIC_CHECK = [positive_data_acceptance]
# Endless streams of events.
LEFT_OUT = {("GET", "/api/v1/runs/{run_id}/stream"), ("GET", "/api/v1/jobs/{job_id}/stream")}
# A file for which the disk has no room gets 503, whatever the request.
NEEDS_ROOM = {"/api/v1/artifacts/uploads/{sha256}"}
# A load balancer may add parameters of its own.
ANY_PARAMETER = {"/healthz", "/readyz"}
OWN, OPENAI = "/openapi.json", "/v1/openapi.json"
DOCUMENTS = {OWN: built_app().openapi(), OPENAI: create_openai_app().openapi()}
OPERATIONS = [
    (document, method.upper(), path)
    for document, schema in DOCUMENTS.items()
    for path, operations in schema["paths"].items()
    for method in operations
    if (method.upper(), path) not in LEFT_OUT
]


def has_whole_float(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(has_whole_float, value.values()))
    if isinstance(value, list):
        return any(map(has_whole_float, value))
    return isinstance(value, float) and value.is_integer()


@pytest.fixture
def headers(settings: Settings) -> dict[str, str]:
    """Return the header of an admin's key."""
    with transaction() as session:
        _, secret = service.create_key(session, KeyCreate(name="test", scopes=[Scope.admin]))
    return {"Authorization": f"Bearer {secret}"}


@pytest.mark.parametrize(("document", "method", "path"), OPERATIONS)
def test_every_response_is_documented(headers: dict[str, str], document: str, method: str, path: str) -> None:
    schema = schemathesis.openapi.from_asgi(document, configured_app())
    modes = [GenerationMode.POSITIVE] if path in ANY_PARAMETER else list(GenerationMode)
    is_semantic = document == OPENAI or path in SEMANTIC or path.startswith("/api/v1/aliases")
    left_out = SEMANTIC_CHECK if is_semantic or not THOROUGH else []
    left_out = left_out + [not_a_server_error] * (path in NEEDS_ROOM)
    n_responses = 0

    @hypothesis_settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=one_of(*(schema[path][method].as_strategy(generation_mode=mode) for mode in modes)))
    def check(case: Any) -> None:
        nonlocal n_responses
        # JSON Schema calls 5.0 an integer, and the service does not.
        assume(not has_whole_float(case.body))
        case.call_and_validate(headers=headers, excluded_checks=left_out)
        n_responses += 1

    check()
    assert n_responses > 0
