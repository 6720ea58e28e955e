"""A generation request whose answer is stored, or that continues a stored response."""

from typing import Any

import msgspec

from serving.gateway.connection_pool import UpstreamError
from serving.gateway.downstream import Downstream
from serving.gateway.proxy.proxied_request import ProxiedRequest
from serving.gateway.request_body import RequestBody, read_field, replace_model_name
from serving.gateway.request_context import RequestContext
from serving.gateway.routes import Route, Target
from serving.gateway.stored_answers.answer import RESPONSES_PATH, AnswerFields, end_position, join_input
from serving.gateway.stored_answers.store import AnswerStore, CompleteAnswer, StoreLoss
from serving.gateway.upstreams import Upstreams
from serving.http.errors import InvalidRequest
from serving.http.limits import MAX_BODY_BYTES

CHATS_PATH = "/v1/chat/completions"
MAX_ANSWER_BYTES = 32 * 2**20
# Of all streams that are being collected in this process.
MAX_COLLECTED_BYTES = 256 * 2**20
MAX_METADATA, MAX_METADATA_KEY, MAX_METADATA_VALUE = 16, 64, 512


class CollectedBytes:
    """The bytes that the requests of this process have collected."""

    total = 0


def needs_store(path: str, body: RequestBody, route: Route) -> bool:
    """Return whether the answer may be stored, or continues a stored one; raises InvalidRequest.

    As with OpenAI, a chat is stored if it asks for that, and a response unless it asks not to be.
    """
    if path == CHATS_PATH:
        return read_field(body.fields, "store") is True and route.stores_answers
    if path != RESPONSES_PATH:
        return False
    if body.previous_response_id is None:
        return route.stores_answers and read_field(body.fields, "store") is not False
    if not route.stores_answers:
        raise InvalidRequest(
            f"'previous_response_id' needs stored responses, but the deployment of {route.name!r} stores "
            "none: its 'store_days' is 0. Send the whole conversation in 'input', or deploy the model with "
            "'store_days'.",
            "previous_response_id",
        )
    return True


class StoredRequest(ProxiedRequest):
    """Forwards a request like any other, except for its end: that is sent once the answer is stored.

    So the id of a complete answer can be used at once. If the answer cannot be stored, it is sent all the
    same, and reports `store: false` if it is a response. Nothing is stored of a stream that breaks, or whose
    client disconnects.
    """

    def __init__(
        self,
        upstreams: Upstreams,
        context: RequestContext,
        route: Route,
        body: RequestBody,
        extra_headers: bytes,
        downstream: Downstream,
        store: AnswerStore,
        key_id: str,
    ) -> None:
        self.store = store
        self.key_id = key_id
        self.request_fields = dict(body.fields)
        self.previous_id = body.previous_response_id
        self.wanted = read_field(body.fields, "store") is not False
        self.collected: list[bytes] | None = None
        self.n_collected = 0
        self.held = b""
        check_metadata(body)
        body.fields.pop("previous_response_id", None)
        body.fields.pop("store", None)
        if context.path == RESPONSES_PATH:
            # An engine would keep the response in its own memory by default.
            body.fields["store"] = msgspec.Raw(b"false")
        super().__init__(upstreams, context, route, body, extra_headers, downstream)

    def start(self) -> None:
        if self.previous_id is None:
            super().start()
        else:
            self._run_in_task(self._continue(self.previous_id))

    async def _continue(self, previous_id: str) -> None:
        items = list(await self.store.load_conversation(previous_id, self.key_id))
        if "input" not in self.body.fields:
            raise InvalidRequest("'input' is required: it is the next turn of the conversation.", "input")
        try:
            joined = join_input(items, self.body.fields["input"])
        except ValueError as error:
            raise InvalidRequest(str(error), "input") from error
        if len(memoryview(joined)) > MAX_BODY_BYTES:
            raise InvalidRequest(
                f"The conversation is larger than {MAX_BODY_BYTES} bytes. Begin a new one.",
                "previous_response_id",
            )
        self.body.fields["input"] = joined
        super().start()

    def _send_to(self, target: Target, fresh: bool = False) -> None:
        self._drop_collected()
        is_stored = self.wanted and target.store_days > 0
        self.collected = [] if is_stored else None
        answer_id = self.store.new_id(self.context.path) if is_stored else None
        self.answer = AnswerFields(self.context.path, answer_id, is_stored, self.previous_id)
        super()._send_to(target, fresh)

    # Called by the engine's connection.

    def on_end(self, chunk: bytes) -> None:
        if self.held:
            self.upstream = None
            self._finish_stream(b"")
        else:
            super().on_end(chunk)

    def on_error(self, error: UpstreamError) -> None:
        if self.held:
            # After its last event, a stream is complete for the store as well.
            self.upstream = None
            self._finish_stream(b"")
        else:
            super().on_error(error)

    def _take_lines(self, chunk: bytes) -> bytes:
        lines = super()._take_lines(chunk)
        try:
            return self.answer.set_in_lines(lines) if lines else lines
        except ValueError:
            # An event that is not JSON is forwarded; the store refuses it.
            return lines

    def _forward(self, lines: bytes) -> None:
        if self.collected is None:
            super()._forward(lines)
            return
        if self.context.path == CHATS_PATH:
            self._collect(self.collected, lines)
        if not self.stream_end.done or self.collected is None:
            super()._forward(lines)
            return
        start = 0 if self.held else end_position(self.context.path, lines)
        self.held += lines[start:]
        if start:
            super()._forward(lines[:start])

    def _collect(self, collected: list[bytes], lines: bytes) -> None:
        self.n_collected += len(lines)
        CollectedBytes.total += len(lines)
        collected.append(lines)
        if self.n_collected > MAX_ANSWER_BYTES or CollectedBytes.total > MAX_COLLECTED_BYTES:
            self._drop_collected()
            self.store.record_loss(StoreLoss.too_large)

    def _drop_collected(self) -> None:
        CollectedBytes.total -= self.n_collected
        self.collected, self.n_collected = None, 0

    def _finish_stream(self, lines: bytes) -> None:
        if lines and self.collected is not None:
            self._forward(lines)
            lines = b""
        if self.collected is None:
            super()._finish_stream(self.held + lines)
        else:
            self._run_in_task(self._store_and_finish(self.collected))

    async def _store_and_finish(self, collected: list[bytes]) -> None:
        ending, self.held = self.held, b""
        content = b"".join([*collected, self.stream_end.usage]) if collected else ending
        is_stored = not self.stream_end.failed and await self._store(content)
        self._drop_collected()
        if not is_stored:
            self.answer.stored = False
            ending = self.answer.set_in_lines(ending)
        super()._finish_stream(ending)

    def _respond(self, chunk: bytes) -> None:
        if self.status != 200:
            super()._respond(chunk)
            return
        content = replace_model_name(b"".join([*self.parts, chunk]), self.replacements)
        self.parts.clear()
        self._run_in_task(self._store_and_respond(content))

    async def _store_and_respond(self, content: bytes) -> None:
        try:
            marked = self.answer.set_in_object(content)
        except ValueError:
            marked = content
        if self.collected is not None:
            if len(marked) > MAX_ANSWER_BYTES:
                self.store.record_loss(StoreLoss.too_large)
                is_stored = False
            else:
                is_stored = await self._store(marked)
            if not is_stored and marked is not content:
                self.answer.stored = False
                marked = self.answer.set_in_object(content)
        super()._respond(marked)

    async def _store(self, content: bytes) -> bool:
        assert self.answer.id is not None, "an answer that is collected has an id"
        return await self.store.store(
            CompleteAnswer(
                id=self.answer.id,
                path=self.context.path,
                key_id=self.key_id,
                model=self.route.name,
                deployment_id=self.target.deployment_id,
                store_days=self.target.store_days,
                request=self.request_fields,
                content=content,
                streamed=self.streamed,
                previous_response_id=self.previous_id,
            )
        )

    def _end(self) -> None:
        self._drop_collected()
        super()._end()

    def _fail(self, error: Exception) -> None:
        self._drop_collected()
        super()._fail(error)


def check_metadata(body: RequestBody) -> None:
    """Raise InvalidRequest unless the metadata are at most 16 pairs of short strings."""
    metadata = read_field(body.fields, "metadata")
    if metadata is None:
        return
    if (
        not isinstance(metadata, dict)
        or len(metadata) > MAX_METADATA
        or not all(_is_text(key, MAX_METADATA_KEY) for key in metadata)
        or not all(_is_text(value, MAX_METADATA_VALUE) for value in metadata.values())
    ):
        raise InvalidRequest(
            f"'metadata' must be an object of at most {MAX_METADATA} strings, with keys of at most "
            f"{MAX_METADATA_KEY} and values of at most {MAX_METADATA_VALUE} characters.",
            "metadata",
        )


def _is_text(value: Any, max_length: int) -> bool:
    # PostgreSQL cannot store the character NUL.
    return isinstance(value, str) and len(value) <= max_length and "\0" not in value
