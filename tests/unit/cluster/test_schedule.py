"""Schedule: each shard is handed out until it is written, and one that costs actors is isolated, then given up."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip.cluster.schedule import MOST_LOST, TASK_S, Schedule, Task
from clip.errors import ClipError


@given(st.integers(0, 60), st.integers(1, 5), st.data())
def test_every_shard_is_written_once_whatever_is_lost(shards: int, actors: int, data: st.DataObject) -> None:
    schedule = Schedule(range(shards), actors)
    taken: list[Task] = []
    written: Counter[int] = Counter()
    losses = 0
    while not schedule.is_over:
        while len(taken) < actors and (task := schedule.take()) is not None:
            taken.append(task)
        task = taken.pop(data.draw(st.integers(0, len(taken) - 1)))
        if losses < MOST_LOST and data.draw(st.booleans()):  # fewer than what ends a run
            schedule.lose(task, "lost")
            losses += 1
        else:
            schedule.finish(task, data.draw(st.floats(0.01, 2 * TASK_S)))
            written.update(task.shards)
    assert written == Counter(range(shards))


def test_shards_of_a_lost_task_are_written_one_by_one() -> None:
    schedule = Schedule(range(100), 1)
    first = schedule.take()
    assert first == Task((0,)), "how long a shard takes is not known yet"
    schedule.finish(first, TASK_S / 10)
    second = schedule.take()
    assert second == Task(tuple(range(1, 11)))
    schedule.lose(second, "lost")
    assert [schedule.take() for _ in range(10)] == [Task((shard,)) for shard in range(1, 11)]


def test_the_last_shards_are_not_one_actors() -> None:
    schedule = Schedule(range(17), 2)
    first = schedule.take()
    assert first is not None
    schedule.finish(first, 0.001)
    assert schedule.take() == Task((1, 2)), "of 16 that wait, two actors have an eighth each"


def test_a_shard_that_costs_actors_is_isolated_and_then_given_up() -> None:
    schedule = Schedule([7], 2)
    for lost in range(2 * MOST_LOST):
        task = schedule.take()
        assert task == Task((7,), isolated=lost >= MOST_LOST)
        if lost < 2 * MOST_LOST - 1:
            schedule.lose(task, "the node is gone")
    with pytest.raises(ClipError, match=r"shard 7: ended 6 actors, .*the node is gone"):
        schedule.lose(task, "the node is gone")


def test_a_task_of_several_shards_holds_none_to_account() -> None:
    schedule = Schedule(range(100), 1)
    first = schedule.take()
    assert first is not None
    schedule.finish(first, 1.0)
    many = schedule.take()
    assert many is not None and len(many.shards) > 1
    schedule.lose(many, "lost")
    for _ in range(MOST_LOST):
        alone = schedule.take()
        assert alone is not None and not alone.isolated
        schedule.finish(alone, 1.0)
