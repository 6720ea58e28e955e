"""The proof that an engine serves what was trained, before a deployment opens to requests."""

from pathlib import Path
from typing import Any

from app.tables import Deployment
from serving.engines import Engine
from workers.launch import ResolvedModel
from workers.lease import Lease


def prove(
    engine: Engine,
    address: str,
    name: str,
    model: ResolvedModel,
    deployment: Deployment,
    lease: Lease,
    folder: Path,
) -> dict[str, Any] | None:
    """How the model that an engine has under `name` compares with the trained one.

    A report with `passed`, and `message` if it has not, which the deployment keeps; `deployment.parity` is
    that of an earlier start. A program that compares is started in `folder`, and bound to the lease as every
    child is. None where nothing is compared. Raises EngineRefused when the engine does not answer.
    """
    return None
