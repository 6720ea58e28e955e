"""One list of error codes."""

import pytest

from app.main import create_app
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError


def error_classes(root: type[TunesmithError]) -> list[type[TunesmithError]]:
    return [root, *(found for child in root.__subclasses__() for found in error_classes(child))]


def test_every_error_class_uses_a_code_of_the_list() -> None:
    create_app()  # It imports every module of the API and the gateway.
    assert {type(error.code) for error in error_classes(TunesmithError)} == {ErrorCode}


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_is_described_in_a_sentence(code: ErrorCode) -> None:
    assert code.description.endswith(".")


def test_a_code_is_read_back_from_its_value() -> None:
    assert ErrorCode("lease_lost") is ErrorCode.lease_lost
    assert ErrorCode.lease_lost.infrastructure
    assert not ErrorCode.config_invalid.infrastructure
