"""An engine checks no key: the internet does not reach it, and no client reaches its own paths.

Attacks: public addresses for an engine, and paths of an engine's administration through the gateway.
"""

import pytest
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from app.settings import Settings
from serving.engines import EngineConfig
from serving.engines.decoding.base import ModelRunner
from serving.engines.openai_server.program import run_server
from serving.engines.vllm import VllmEngine
from serving.gateway.gateway import Gateway
from serving.gateway.mounted.asgi import AsgiGateway
from serving.gateway.routes import StaticRoutingTable, parse_route
from tests.security.regression import Regression, accept
from tests.services import free_port
from trainers.configs.engines import EngineKind, EngineOptions
from workers.engines.engine_start import EngineProcessFailed, hold_address

PUBLIC = ["0.0.0.0", "::", "8.8.8.8", "::ffff:8.8.8.8", "2001:4860:4860::8888", "0", "134744072", ""]
ADMIN_PATHS = [
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/load_lora_adapter",
    "/sleep",
    "/collective_rpc",
    "/flush_cache",
    "/update_weights_from_disk",
    "/generate",
    "/tokenize",
    "/health",
    "/metrics",
    "/v1/chat/completions/../../load_lora_adapter",
    "/v1//load_lora_adapter",
    "/v1/%6coad_lora_adapter",
    "/v1/chat/completions/",
    "/V1/chat/completions",
]


def never_load(*_: object) -> ModelRunner:
    raise AssertionError("the engine was started")


@pytest.mark.parametrize("host", PUBLIC)
def test_a_worker_starts_no_engine_on_a_public_address(host: str) -> None:
    with pytest.raises(EngineProcessFailed):
        hold_address(host)


@pytest.mark.parametrize("host", PUBLIC)
def test_an_engine_by_hand_listens_on_no_public_address(
    host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        run_server(EngineKind.hf, never_load, ["--model", "x", "--host", host, "--port", str(free_port())])
    assert refused.value.code == 2
    assert "public" in capsys.readouterr().err


@pytest.mark.parametrize("host", PUBLIC)
def test_no_setting_moves_engines_to_a_public_address(host: str) -> None:
    with pytest.raises(ValidationError):
        Settings(engine_host=host)


def test_the_endpoints_of_vllm_that_run_code_stay_on_loopback() -> None:
    config = EngineConfig(
        model="m",
        served_name="m",
        host="10.0.0.7",
        port=1,
        options=EngineOptions(sleep_mode=True),
        adapters={},
    )
    with pytest.raises(ValueError, match="development endpoints"):
        VllmEngine().command(config)


@pytest.mark.parametrize("path", ADMIN_PATHS)
def test_the_gateway_forwards_the_paths_of_openais_api_only(path: str) -> None:
    """The engine's port is closed: a request that is forwarded gets 503."""
    routes = StaticRoutingTable([parse_route({"name": "m", "base_url": f"http://127.0.0.1:{free_port()}"})])
    app = Starlette(routes=[Mount("/v1", AsgiGateway(Gateway(routes)))])
    with TestClient(app, base_url="http://127.0.0.1") as client:
        forwarded = client.post("/v1/chat/completions", json={"model": "m", "messages": []})
        assert forwarded.status_code == 503
        for method in ("POST", "GET", "PUT"):
            assert client.request(method, path, json={"model": "m"}).status_code in (400, 404, 405)


REGRESSIONS = [
    Regression(
        "a worker takes any address",
        "workers.engines.engine_start:is_private",
        accept,
        "test_a_worker_starts_no_engine_on_a_public_address",
    ),
    Regression(
        "a setting takes any address",
        "app.settings.engines:is_private",
        accept,
        "test_no_setting_moves_engines_to_a_public_address",
    ),
    Regression(
        "the development endpoints of vllm take any address",
        "serving.engines.vllm:is_loopback",
        accept,
        "test_the_endpoints_of_vllm_that_run_code_stay_on_loopback",
    ),
    Regression(
        "the gateway forwards every path",
        "serving.gateway.gateway:ENGINE_PATHS",
        type("EveryPath", (), {"__contains__": accept})(),
        "test_the_gateway_forwards_the_paths_of_openais_api_only",
    ),
]
