"""The client matrix on our own engines: every client connects, and every case passes."""

import shutil

import pytest

from tests.clients.__main__ import run_matrix
from tests.clients.catalogue import CLIENTS
from tests.services import REQUIRED

MISSING = [program for program in ("uv", "npm", "java") if shutil.which(program) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(bool(MISSING) and not REQUIRED, reason=f"missing: {', '.join(MISSING)}"),
]


def test_every_client_passes_every_case_on_our_own_engines() -> None:
    results, _ = run_matrix(list(CLIENTS), ["hf", "mlx"])
    assert len(results) > len(CLIENTS)
    assert [(one.client.name, one.engine, one.cases) for one in results if any(one.cases.values())] == []
