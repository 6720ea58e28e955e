"""The gateway as the service mounts it, under uvicorn.

python -m tests.benchmarks.gateway_mounted ROUTES PORT
"""

import sys
from pathlib import Path

import uvicorn

from serving.gateway.__main__ import single_key_authorizer
from serving.gateway.gateway import Gateway
from serving.gateway.mounted.asgi import AsgiGateway
from serving.gateway.request_context import RequestContext
from serving.gateway.routes import StaticRoutes


def silent(exchanges: list[RequestContext]) -> None:
    """The service's log is another subject."""


if __name__ == "__main__":
    gateway = Gateway(StaticRoutes.from_file(Path(sys.argv[1])), single_key_authorizer("sk-x"), log=silent)
    uvicorn.run(
        AsgiGateway(gateway), port=int(sys.argv[2]), access_log=False, log_level="warning", lifespan="off"
    )
