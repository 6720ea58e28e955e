"""What programs and workers call a failure is one list."""

from app.errors import RunErrorCode
from trainers.errors import ErrorCode


def test_every_code_of_a_program_is_published() -> None:
    assert {code.value for code in ErrorCode} <= {code.value for code in RunErrorCode}
