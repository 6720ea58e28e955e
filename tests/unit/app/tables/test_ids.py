from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from app.tables.base import _Sequence, new_id


def test_ids_of_one_process_sort_in_the_order_in_which_they_were_made() -> None:
    made = [new_id("run") for _ in range(5_000)]
    assert made == sorted(made)


def test_ids_stay_in_their_order_when_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([5, 2, 2, 3, 5, 6])
    clock = SimpleNamespace(time_ns=lambda: next(seconds) * 1_000_000_000)
    monkeypatch.setattr("app.tables.base.time", clock)
    sequence = _Sequence()
    made = [sequence.next() for _ in range(6)]
    assert made == sorted(made) and [number >> 80 for number in made] == [5000] * 5 + [6000]


def test_threads_make_no_id_twice_and_each_keeps_its_order() -> None:
    with ThreadPoolExecutor(4) as threads:
        lists = list(threads.map(lambda _: [new_id("run") for _ in range(1_000)], range(4)))
    assert all(made == sorted(made) for made in lists)
    assert len({made for each in lists for made in each}) == 4_000


def test_an_id_cannot_be_foreseen_from_the_one_before() -> None:
    made = [new_id("run") for _ in range(1_000)]
    # The last nine digits, 45 bits, differ between all of them.
    assert len({each[-9:] for each in made}) == 1_000
