"""Names, tags and tokens of machines.

Goal: a machine is found by its installation, host and epoch alone, and no two orders share a token.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.tables.base import new_id
from tests.properties import QUICK
from workers.clouds.protocol import MAX_NAME_CHARACTERS, LaunchOrder

IDS = st.from_regex(r"\A[a-z0-9][a-z0-9_-]{0,39}\Z")


def make_order(installation: str = "team", host_id: str = "host_1", epoch: int = 1) -> LaunchOrder:
    return LaunchOrder(installation, host_id, epoch, "g5.xlarge", "us-east-1", "#!/bin/sh\n")


@QUICK
@given(IDS, IDS, st.integers(0, 9999))
def test_a_name_has_at_most_sixty_four_characters_and_ends_with_host_and_epoch(
    installation: str, host_id: str, epoch: int
) -> None:
    name = make_order(installation, host_id, epoch).name
    assert len(name) <= MAX_NAME_CHARACTERS
    assert name.endswith(f"-{host_id}-{epoch}")


def test_the_name_of_a_host_contains_the_installation() -> None:
    host_id = new_id("host")
    assert make_order("team-4f2a", host_id, 3).name == f"tunesmith-team-4f2a-{host_id}-3"


def test_another_epoch_is_another_token() -> None:
    tokens = {make_order("a", "b", 1).token, make_order("a", "b", 2).token, make_order("ab", "b", 1).token}
    assert len(tokens) == 3
    assert {len(token) for token in tokens} == {64}


@pytest.mark.parametrize("hostile", ["", "a b", "a/b", "a\n", "Ä", "-a", "a" * 41, "$(reboot)"])
def test_an_id_that_cannot_be_part_of_a_name_is_refused(hostile: str) -> None:
    with pytest.raises(ValueError, match="cannot be part of a machine's name"):
        make_order(installation=hostile)


def test_user_data_is_not_part_of_what_is_logged() -> None:
    assert "/bin/sh" not in repr(make_order())
