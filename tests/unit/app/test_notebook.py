"""How objects draw themselves in a notebook.

Goal: no text of a user becomes markup. Method: draw views whose every text is markup.
"""

from datetime import UTC, datetime
from xml.etree import ElementTree

import pytest

from app.client.notebook import draw_curve, draw_differences, draw_report, draw_scores
from app.client.views.datasets import DataFault, DataReport
from app.client.views.evaluations import DifferenceRecord, ScoredModel, ScoreRecord
from app.client.views.runs import CurvePoint

EVIL = "<script>alert('x')</script>\"&"


def make_points(*values: float | None) -> list[CurvePoint]:
    now = datetime.now(UTC)
    return [
        CurvePoint(seq=step, attempt=1, step=step, values={"loss": value}, created_at=now)
        for step, value in enumerate(values)
    ]


def test_texts_are_escaped() -> None:
    score = ScoreRecord(metric=EVIL, value=0.5, interval_95=(0.4, 0.6), n=10, signature="s")
    difference = DifferenceRecord(
        metric=EVIL,
        role=EVIL,
        other=EVIL,
        n=9,
        difference=0.1,
        interval_95=None,
        p_value=0.1,
        p_adjusted=0.2,
        method="m",
        wins=1,
        losses=2,
        ties=3,
        verdict=EVIL,
    )
    report = DataReport(faults=[DataFault(line=1, code=EVIL, message=EVIL)])
    drawn = draw_scores([ScoredModel(role=EVIL, model=EVIL, scores=[score])], 10)
    for html in (drawn, draw_differences([difference]), draw_report(EVIL, report)):
        assert "<script" not in html and "&lt;script" in html
        ElementTree.fromstring(f"<div>{html}</div>")


def test_a_curve_is_drawn_from_its_first_to_its_last_step() -> None:
    html = draw_curve(make_points(3.0, None, 2.0, 1.0), "loss")
    line = ElementTree.fromstring(html).find(".//polyline")
    assert line is not None and len(line.attrib["points"].split()) >= 3
    assert "3 → 1" in html and "steps 0 to 3" in html


@pytest.mark.parametrize("values", [(), (1.0,), (None, None)])
def test_a_curve_of_less_than_two_points_is_not_drawn(values: tuple[float | None, ...]) -> None:
    assert draw_curve(make_points(*values), "loss") == ""
