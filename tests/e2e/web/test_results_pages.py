"""The pages of results in a real browser: accessibility, widths, themes and languages."""

from tests.e2e.web.conftest import Pages


def test_the_checkpoints_of_a_run_are_accessible_at_every_width(pages: Pages) -> None:
    pages.look(f"/runs/{pages.runs['ko-en-news'][0].id}/checkpoints?step=10000", "checkpoints")
