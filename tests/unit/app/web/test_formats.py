"""Numbers as the pages show them."""

import pytest

from app.web.formats import format_percent


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.7, "70 %"), (0.29, "29 %"), (0.996, "99 %"), (0.009, "0 %"), (1.0, "100 %"), (1 / 3, "33 %")],
)
def test_a_share_is_a_whole_percentage_and_only_a_complete_one_is_100(share: float, shown: str) -> None:
    assert format_percent(share) == shown
