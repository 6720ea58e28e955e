"""The thread that stores answers outlives whatever one of them raises."""

from typing import Any

from app.completions.writer import AnswerWriter
from app.scheduling.incidents import list_problems


class UnreadableAnswer:
    """An answer whose fields cannot be read, for a reason that nobody expects."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")


def test_an_unexpected_error_loses_its_answer_alone_and_is_an_incident() -> None:
    writer = AnswerWriter()
    answer: Any = UnreadableAnswer()
    assert writer.submit(answer).result(60) is False
    assert any("storing answers" in problem and "RuntimeError" in problem for problem in list_problems())
    # The thread is alive: the next one is handled as well.
    assert writer.submit(answer).result(60) is False
    writer.stop()
