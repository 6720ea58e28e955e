"""Templates to responses: every value is escaped, and every text comes from the catalogue."""

import json
import re
from functools import cache, partial
from typing import Any

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from app.http.metrics import VERSION
from app.tables.base import utc_now
from app.web import formats
from app.web.catalogue import LANGUAGE_NAMES, Language, has_text, load_texts, translator
from app.web.navigation import NAVIGATION
from app.web.static_files import files_hash, static_url
from app.web.visitor import Theme, current_visitor, set_session_cookie

# Of htmx: no style sheet of its own, which the policy forbids, and a page of the history is loaded again.
HTMX_CONFIG = json.dumps(
    {
        "includeIndicatorCSS": False,
        "history": "reload",
        "defaultTimeout": 20_000,
        "defaultSettleDelay": 0,
        # A part that changes leaves open what its reader has opened.
        "morphIgnore": ["data-htmx-powered", "open"],
    }
)


@cache
def get_environment(language: Language) -> Environment:
    """Return the templates with the texts of a language."""
    environment = Environment(
        loader=PackageLoader("app.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    t = translator(language)
    environment.filters |= {
        "number": formats.format_number,
        "percent": formats.format_percent,
        "bytes": formats.format_bytes,
        "time": formats.format_time,
        "duration": partial(formats.format_duration, t=t),
        "value": formats.format_value,
        "pretty": _format_json,
    }
    environment.globals |= {
        "t": t,
        "has_text": partial(has_text, language),
        "elapsed": partial(formats.format_elapsed, t=t),
        "static_url": static_url,
        "language": language,
        "language_names": LANGUAGE_NAMES,
        "themes": list(Theme),
        "navigation": NAVIGATION,
        "version": VERSION,
        "htmx_config": HTMX_CONFIG,
        "assets": files_hash(),
        "now": lambda: utc_now().isoformat(timespec="milliseconds"),
        "metric_names": partial(_metric_names, language),
        "duration_form": partial(_duration_form, language),
    }
    return environment


def render_page(request: Request, template: str, status: int = 200, **context: Any) -> HTMLResponse:
    """Return the response with a whole page, whose form token fits the cookie of the visitor."""
    visitor = current_visitor(request)
    content = get_environment(visitor.language).get_template(template)
    html = content.render(visitor=visitor, address=address_of(request), **context)
    response = HTMLResponse(html, status)
    if not visitor.has_cookie:
        set_session_cookie(response, visitor)
    return response


def render_macro(language: Language, template: str, macro: str, *arguments: Any, **options: Any) -> str:
    """Return the HTML of one macro of a template: a part of a page that changes live."""
    module = get_environment(language).get_template(template).module
    # Without spaces around it: htmx would add them to the page with each change.
    return str(getattr(module, macro)(*arguments, **options)).strip()


def render_partial(target: str, html: str, swap: str = "outerMorph") -> str:
    """Return HTML that htmx puts into the place of the element with an id."""
    return f'<hx-partial hx-target="#{target}" hx-swap="{swap}">{html}</hx-partial>'


def address_of(request: Request) -> str:
    """Return the path of a request with its query."""
    path, query = request.scope["path"], request.scope["query_string"].decode("latin-1")
    return f"{path}?{query}" if query else path


def is_htmx(request: Request) -> bool:
    """Return whether htmx has sent a request, and can use a part of a page as the response."""
    return "hx-request" in request.headers


def go_to(request: Request, page: str) -> Response:
    """Return the way to a page after a form has changed something."""
    if is_htmx(request):
        return Response(headers={"HX-Redirect": page})
    return RedirectResponse(page, 303)


def _metric_names(language: Language) -> dict[str, str]:
    """Return the names of metrics that the language has, by the names that programs use."""
    texts = load_texts(language).items()
    return {key.removeprefix("metrics."): str(text) for key, text in texts if key.startswith("metrics.")}


def _duration_form(language: Language, name: str) -> str:
    """Return the text of a duration with plain placeholders, which the browser fills in."""
    return re.sub(r":\w+", "", str(load_texts(language)[f"common.{name}"]))


def _format_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)
