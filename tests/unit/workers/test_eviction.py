"""Which idle engines make room for a deployment that waits for GPUs."""

import pytest

from workers.engines.eviction import IdleEngine, choose_engines

ENGINES = [IdleEngine("a", 1, 50), IdleEngine("b", 2, 90), IdleEngine("c", 1, 70)]


@pytest.mark.parametrize(
    ("n_needed", "n_free", "chosen"),
    [
        (1, 0, ["b"]),  # The least recently used one, although it has more than what is needed.
        (3, 0, ["b", "c"]),
        (3, 1, ["b"]),
        (2, 2, []),
        (5, 1, ["b", "c", "a"]),
        (5, 0, []),  # All of them would not suffice: nothing is gained.
    ],
)
def test_the_least_recently_used_engines_are_chosen_if_they_suffice(
    n_needed: int, n_free: int, chosen: list[str]
) -> None:
    assert [engine.key for engine in choose_engines(ENGINES, n_needed, n_free)] == chosen
