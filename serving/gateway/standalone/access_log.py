"""The access log of the standalone gateway: JSON lines, many in one write."""

import json
import os
import time
from functools import lru_cache

from serving.gateway.request_context import RequestContext


class AccessLog:
    """Writes the access log to a file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __call__(self, contexts: list[RequestContext]) -> None:
        """Write a line for each request."""
        epoch = time.time() - time.perf_counter()
        lines = "".join([format_line(context, epoch) for context in contexts]).encode()
        while lines:
            lines = lines[os.write(self.descriptor, lines) :]


def format_line(context: RequestContext, epoch: float) -> str:
    """Return the JSON line of a request.

    Path and model come from the client and are escaped; `epoch` is the time at which perf_counter was 0.
    """
    first = context.first_byte_seconds
    prompt, completion = context.prompt_tokens, context.completion_tokens
    return (
        f'{{"time":{epoch + context.started_at:.3f},"request_id":"{context.request_id}",'
        f'"method":"{context.method}","path":{quote(context.path)},"model":{quote(context.model)},'
        f'"key_id":"{context.key_id}","status":{context.status},'
        f'"first_byte_seconds":{"null" if first is None else f"{first:.6f}"},'
        f'"seconds":{context.seconds:.6f},"prompt_tokens":{"null" if prompt is None else prompt},'
        f'"completion_tokens":{"null" if completion is None else completion}}}\n'
    )


@lru_cache(maxsize=1024)
def quote(text: str) -> str:
    """Return the text as a JSON string."""
    return json.dumps(text)
