"""Logs as JSON lines, each with its request or run id, and without secrets."""

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from trainers.runtime.redaction import redact

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
run_id: ContextVar[str | None] = ContextVar("run_id", default=None)

# Attributes of every record; any other comes from `extra` and is written as a field.
_STANDARD_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "color_message",
}


def configure_logging(level: str) -> None:
    """Write the process's logs to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # `app.requests` logs each request once. Alembic logs its dialect at every start, and the form parser
    # every callback of every file.
    logging.getLogger("uvicorn.access").disabled = True
    # One line for each health check of an engine would hide everything else.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    # At its level of debugging, it writes requests with user data, whose key the redaction cannot recognize.
    logging.getLogger("botocore").setLevel(logging.INFO)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("python_multipart").setLevel(logging.WARNING)


class JsonFormatter(logging.Formatter):
    """A formatter of one JSON object per line: time, level, logger, message, ids and `extra` fields."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": request_id.get(),
            "run_id": run_id.get(),
        }
        fields |= {name: value for name, value in vars(record).items() if name not in _STANDARD_ATTRIBUTES}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        present = {name: value for name, value in fields.items() if value is not None}
        return redact(json.dumps(present, default=str, ensure_ascii=False))
