"""Chat with one deployment, or with two side by side; a script sends the messages and shows the answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Form, Query, Request, Response
from fastapi.responses import JSONResponse
from sqlmodel import Session
from starlette.types import Receive, Scope, Send

from app.completions.ratings import Rating, rate_pair
from app.http.gateway import CHATS_PATH, authorize_caller
from app.routing_table.schemas import ChatModelView
from app.routing_table.service import find_base_name, list_chat_models
from app.storage.database import ReadSession, WriteSession
from app.tables import Scope as KeyScope
from app.web.live import LiveView, Parts, Version, stream_view
from app.web.rendering import render_macro, render_page
from app.web.url_state import encode_query
from app.web.visitor import CurrentVisitor, Visitor, view_router
from serving.gateway.mounted.asgi import AsgiGateway
from serving.gateway.rate_limits import AuthorizedClient

PARTS = "chat/parts.jinja"

# Requests of the page need the same scope as those to /v1.
router = view_router(write=KeyScope.inference)

Name = Annotated[str, Query(max_length=100)]
Number = Annotated[str, Query(max_length=20, pattern=r"^-?[0-9]*\.?[0-9]*$")]
CompletionId = Annotated[str, Form(max_length=100)]


@dataclass(frozen=True)
class ChatQuery:
    """What is compared, and how answers are generated; all of it is in the URL."""

    a: str = ""
    b: str | None = None
    """Without a choice, the base of the first model; empty for none."""
    system: str = ""
    temperature: str = ""
    seed: str = ""
    max_tokens: str = ""

    def query(self) -> str:
        """Return the query of a page with the same state."""
        # An empty choice is one, too.
        return encode_query(vars(self)) + ("&b=" if self.b == "" else "")


@dataclass(frozen=True)
class ChatState:
    """The names that the visitor can chat with, and the chosen ones."""

    models: Sequence[ChatModelView]
    a: ChatModelView | None
    b: ChatModelView | None


def chat_query(
    a: Name = "",
    b: Annotated[str | None, Query(max_length=100)] = None,
    model: Name = "",
    system: Annotated[str, Query(max_length=8000)] = "",
    temperature: Number = "",
    seed: Number = "",
    max_tokens: Number = "",
) -> ChatQuery:
    """Return the state of a request; links from other pages name one `model`."""
    return ChatQuery(a or model, b, system, temperature, seed, max_tokens)


Chosen = Annotated[ChatQuery, Depends(chat_query)]


@router.get("/chat")
def show_chat(request: Request, session: ReadSession, visitor: CurrentVisitor, chosen: Chosen) -> Response:
    """Show the form of a message, and the models that answer it."""
    view = _chat_view(chosen, visitor)
    state = view.load(session)
    parts = view.render(state, visitor)
    return render_page(request, "chat/page.jinja", state=state, parts=parts, chosen=chosen)


@router.get("/chat/stream")
def stream_chat(request: Request, visitor: CurrentVisitor, chosen: Chosen, version: Version = "") -> Response:
    """Stream the status of the models."""
    return stream_view(request, _chat_view(chosen, visitor), version)


def authorized_client(visitor: CurrentVisitor) -> AuthorizedClient:
    """Return the visitor as a client of the gateway, with the limits of its key."""
    assert visitor.caller is not None
    return authorize_caller(visitor.caller)


@router.post("/chat/completions")
async def complete_chat(
    request: Request, client: Annotated[AuthorizedClient, Depends(authorized_client)]
) -> Response:
    """Answer a chat as `POST /v1/chat/completions` does; the login stands for the API key."""
    return GatewayResponse(request.app.state.gateway, client, await request.body())


@router.post("/chat/ratings")
def rate_answers(
    session: WriteSession,
    visitor: CurrentVisitor,
    rating: Annotated[Rating, Form()],
    first: CompletionId = "",
    second: CompletionId = "",
) -> Response:
    """Keep the rating of a pair with those of its answers that are stored."""
    assert visitor.caller is not None
    return JSONResponse({"stored": rate_pair(session, visitor.caller, first, second, rating)})


class GatewayResponse(Response):
    """The response of the gateway: no session or thread is held while it streams."""

    def __init__(self, gateway: AsgiGateway, client: AuthorizedClient, body: bytes) -> None:
        super().__init__()
        self._gateway = gateway
        self._client = client
        self._content = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request with its client's identity replaced by that of the login."""
        await self._gateway.serve(self._client, CHATS_PATH, self._content, scope, receive, send)


def _chat_view(chosen: ChatQuery, visitor: Visitor) -> LiveView[ChatState]:
    def load(session: Session) -> ChatState:
        assert visitor.caller is not None
        models = list_chat_models(session, visitor.caller)
        by_name = {model.name: model for model in models}
        # Without a choice, the newest deployment answers.
        first = by_name.get(chosen.a) if chosen.a else next(iter(models), None)
        second = chosen.b
        if second is None and first is not None:
            second = find_base_name(session, first.name)
        return ChatState(models, first, by_name.get(second or ""))

    def render(state: ChatState, visitor: Visitor) -> Parts:
        sides = (("a", chosen.a, state.a), ("b", chosen.b or "", state.b))
        return Parts(
            {
                f"side-{side}": render_macro(visitor.language, PARTS, "side", side, name, model)
                for side, name, model in sides
            }
        )

    return LiveView(load, render)
