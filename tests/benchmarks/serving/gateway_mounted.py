"""The gateway as the service mounts it, under uvicorn.

python -m tests.benchmarks.serving.gateway_mounted ROUTES PORT
"""

import sys
from pathlib import Path

import uvicorn

from serving.gateway.__main__ import single_key_authorizer
from serving.gateway.gateway import Gateway
from serving.gateway.mounted.asgi import AsgiGateway
from serving.gateway.request_context import RequestContext
from serving.gateway.routes import StaticRoutingTable


def discard_log(contexts: list[RequestContext]) -> None:
    """Log nothing: the service's logging is not measured here."""


if __name__ == "__main__":
    routes = StaticRoutingTable.from_file(Path(sys.argv[1]))
    gateway = Gateway(routes, single_key_authorizer("sk-x"), log=discard_log)
    uvicorn.run(
        AsgiGateway(gateway), port=int(sys.argv[2]), access_log=False, log_level="warning", lifespan="off"
    )
