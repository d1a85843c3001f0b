"""The waits between attempts."""

import pytest

from clip.retry import Patience


def test_each_wait_is_twice_the_last_up_to_the_maximum() -> None:
    patience = Patience(first_wait_s=1.0, max_wait_s=30.0)
    assert [patience.wait_s(attempt) for attempt in range(1, 9)] == [1, 1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize(("at_least_s", "wait_s"), [(0.5, 4.0), (7.0, 7.0), (3600.0, 30.0)])
def test_a_server_may_ask_for_a_longer_wait_but_not_for_more_than_the_maximum(at_least_s: float, wait_s: float) -> None:
    assert Patience().wait_s(4, at_least_s) == wait_s


def test_jitter_spreads_the_waits_around_their_middle_and_not_over_the_maximum() -> None:
    waits = [Patience(jitter=0.3).wait_s(3) for _ in range(500)]
    assert 1.4 <= min(waits) < 1.6 < 2.4 < max(waits) <= 2.6
    assert max(Patience(jitter=0.3).wait_s(9) for _ in range(50)) == 30
