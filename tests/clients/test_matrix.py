"""The client matrix on our own engines: every client connects, and every case passes."""

import pytest

from tests.clients.__main__ import run_matrix
from tests.clients.catalogue import CLIENTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_every_client_passes_every_case_on_our_own_engines() -> None:
    results, _ = run_matrix(list(CLIENTS), ["hf", "mlx"])
    assert len(results) > len(CLIENTS)
    assert [(one.client.name, one.engine, one.cases) for one in results if any(one.cases.values())] == []
