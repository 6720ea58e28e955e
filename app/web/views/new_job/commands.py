"""A job spec as commands that submit it: with curl, by the Python client, and by `tunesmith`."""

from pprint import pformat
from textwrap import indent
from urllib.parse import urlsplit

from starlette.requests import Request

from app.web.views.new_job.draft import Spec, format_json


def list_commands(request: Request, spec: Spec) -> list[tuple[str, str]]:
    """Return the names and the texts of the commands."""
    address = f"{request.url.scheme}://{request.url.netloc}"
    return [
        ("curl", _curl(address, spec)),
        ("Python", _python(address, spec)),
        ("tunesmith", _command(address, spec)),
    ]


def _curl(address: str, spec: Spec) -> str:
    # Nothing is replaced in a here-document with a quoted end, and no line of JSON is that end.
    return (
        f"curl {quote_address(address)}/api/v1/jobs \\\n"
        '  -H "Authorization: Bearer $TUNESMITH_API_KEY" \\\n'
        "  -H 'Content-Type: application/json' \\\n"
        f"  -d @- <<'END'\n{format_json(spec)}\nEND\n"
    )


def _python(address: str, spec: Spec) -> str:
    return (
        "from tunesmith import Client\n\n"
        "# The key is that of TUNESMITH_API_KEY, or of `tunesmith login`.\n"
        f"client = Client({quote_address(address)!r})\n"
        f"job = client.jobs.create(\n{indent(pformat(spec, width=92, sort_dicts=False), '    ')}\n)\n"
        "job.wait()\n"
    )


def _command(address: str, spec: Spec) -> str:
    return (
        f"cat > job.json <<'END'\n{format_json(spec)}\nEND\n"
        f"TUNESMITH_URL={quote_address(address)} tunesmith apply job.json\n"
    )


def quote_address(address: str) -> str:
    """Return an address for a shell: that of a request is what its client has sent."""
    parts = urlsplit(address)
    host = "".join(each for each in parts.netloc if each.isalnum() or each in ".-:[]_")
    return f"{parts.scheme}://{host}"
