"""Models behind endpoints are found in a config at any depth, and reached through the environment."""

import json

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from trainers.configs.base import DeployedModel, EndpointModel, ServedModel
from trainers.configs.references import find_references, find_served_models
from trainers.runtime.endpoints import DEPLOYMENTS_VARIABLE, read_endpoint
from trainers.runtime.errors import ConfigInvalid

JUDGE = EndpointModel(endpoint="judge", model="gpt")


class Scores(BaseModel):
    metrics: list[EndpointModel | str]
    others: dict[str, ServedModel]


def test_served_models_are_found_in_lists_and_mappings() -> None:
    config = Scores(metrics=["bleu", JUDGE], others={"live": DeployedModel(deployment="chat")})
    found = [(path, str(model)) for path, model in find_served_models(config)]
    assert found == [("metrics.1", "gpt at judge"), ("others.live", "deployment chat")]


def test_the_name_of_a_model_at_an_endpoint_is_not_a_reference() -> None:
    assert list(find_references(Scores(metrics=[JUDGE], others={}))) == []


@pytest.mark.parametrize(
    "value", [{"endpoint": "http://10.0.0.1", "model": "m"}, {"url": "http://a", "model": "m"}]
)
def test_an_address_is_not_the_name_of_an_endpoint(value: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(ServedModel).validate_python(value)


def test_an_endpoint_has_the_address_and_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_ENDPOINT_JUDGE_URL", "http://127.0.0.1:1/v1/")
    monkeypatch.setenv("TUNESMITH_ENDPOINT_JUDGE_API_KEY", "sk-1234567890")
    endpoint = read_endpoint(JUDGE)
    assert (endpoint.base_url, endpoint.model) == ("http://127.0.0.1:1/v1", "gpt")
    assert endpoint.headers == {"Authorization": "Bearer sk-1234567890"}
    assert "sk-" not in repr(endpoint)


def test_an_unknown_endpoint_is_an_error_that_names_its_variable() -> None:
    with pytest.raises(ConfigInvalid, match="TUNESMITH_ENDPOINT_JUDGE_URL is not set"):
        read_endpoint(JUDGE)


def test_a_deployment_has_the_address_that_the_worker_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigInvalid, match="deployment 'chat' is unknown"):
        read_endpoint(DeployedModel(deployment="chat"))
    addresses = {"chat": ["http://127.0.0.1:2/v1", "chat-upstream"]}
    monkeypatch.setenv(DEPLOYMENTS_VARIABLE, json.dumps(addresses))
    endpoint = read_endpoint(DeployedModel(deployment="chat"))
    assert (endpoint.base_url, endpoint.model, endpoint.headers) == (*addresses["chat"], {})
