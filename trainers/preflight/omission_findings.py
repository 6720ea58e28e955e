"""Findings in what the rendered rows lack of the rows in the file."""

from collections.abc import Iterator
from typing import Final, NamedTuple

from trainers.preflight.findings import Finding, FindingCode, FindingLevel, new_finding
from trainers.rendering.omissions.counts import OmissionCounts, OmissionKind

MAX_FIELDS: Final = 8


class OmissionReport(NamedTuple):
    """The finding for some kinds of omissions."""

    code: FindingCode
    level: FindingLevel
    kinds: tuple[OmissionKind, ...]
    what: str
    hint: str


OTHER_TEMPLATE: Final = "choose a template that renders them with the field `template`, or another base"
REPORTS: Final = (
    OmissionReport(
        FindingCode.completion_not_rendered,
        FindingLevel.error,
        (OmissionKind.completion,),
        "the chat template renders nothing of a completion, so the model would learn to write nothing",
        f"Remove these rows, or {OTHER_TEMPLATE}.",
    ),
    OmissionReport(
        FindingCode.text_not_rendered,
        FindingLevel.warning,
        (OmissionKind.text,),
        "the chat template leaves out the text of a message",
        f"Check the preview of these rows, and {OTHER_TEMPLATE}.",
    ),
    OmissionReport(
        FindingCode.reasoning_not_rendered,
        FindingLevel.warning,
        (OmissionKind.reasoning,),
        "the chat template leaves out the reasoning of a completion, so it is not trained",
        f"Remove the reasoning, write it into `content` in the model's own form, or {OTHER_TEMPLATE}.",
    ),
    OmissionReport(
        FindingCode.tool_calls_not_rendered,
        FindingLevel.warning,
        (OmissionKind.tool_call,),
        "the chat template leaves out tool calls",
        f"Remove the calls, write them into `content`, or {OTHER_TEMPLATE}.",
    ),
    OmissionReport(
        FindingCode.tools_not_rendered,
        FindingLevel.warning,
        (OmissionKind.tools,),
        "the chat template leaves out tools on offer, so the model does not see what it may call",
        f"Describe the tools in a system message, or {OTHER_TEMPLATE}.",
    ),
    OmissionReport(
        FindingCode.fields_not_read,
        FindingLevel.warning,
        (OmissionKind.unread_field,),
        "a field with text for the model is not read",
        "Move its text into a message, `system`, `history` or `input`, or remove the field.",
    ),
    OmissionReport(
        FindingCode.other_fields_not_read,
        FindingLevel.info,
        (OmissionKind.unread_prose,),
        "a field that contains sentences is not read",
        "If the model needs its text, move it into a message or `system`.",
    ),
    OmissionReport(
        FindingCode.template_changes_rows,
        FindingLevel.info,
        (OmissionKind.white_space, OmissionKind.json_form, OmissionKind.earlier_reasoning),
        "the chat template trims white space, writes JSON in its own form, or drops the reasoning of earlier "
        "turns",
        "Nothing needs to be done: the template does the same when the model is used.",
    ),
)


def check_omissions(omissions: OmissionCounts) -> Iterator[Finding]:
    """Yield a finding for each kind of omission, with the fields and the first lines."""
    for report in REPORTS:
        fields = omissions.fields(*report.kinds)
        if not fields:
            continue
        # A row may have several omissions, of which some concern the same row.
        count = max(omissions.by_kind[kind] for kind in report.kinds)
        named = ", ".join(f"`{name}` ({rows})" for name, rows in fields[:MAX_FIELDS])
        more = f" and {len(fields) - MAX_FIELDS} more" if len(fields) > MAX_FIELDS else ""
        places = [place for kind in report.kinds for place in omissions.places.get(kind, ())]
        yield new_finding(
            report.code,
            report.level,
            f"In {count} of {omissions.rows} rows {report.what}: {named}{more}.",
            report.hint,
            places=sorted(places),
            count=count,
            rows=omissions.rows,
        )
