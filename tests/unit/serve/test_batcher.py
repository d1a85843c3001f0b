"""Batches fill, answers are not swapped, and what fails is one input and not its neighbours."""

import threading
from concurrent.futures import wait

import numpy as np
import pytest

from clip.serve.batcher import Batcher, EngineError, Tower, choose_size

PATIENCE_S = 120


def rows(arrays: np.ndarray) -> np.ndarray:
    return np.stack([np.array([float(array[0]), 1.0], np.float32) for array in arrays])


class Blocked:
    """A model that waits for a word before its first batch, so that the others gather."""

    def __init__(self, encode=rows) -> None:  # type: ignore[no-untyped-def]
        self.sizes: list[int] = []
        self.go, self.began = threading.Event(), threading.Event()
        self._encode = encode

    def __call__(self, arrays: np.ndarray) -> np.ndarray:
        self.sizes.append(len(arrays))
        self.began.set()
        assert self.go.wait(PATIENCE_S)
        return self._encode(arrays)


def test_inputs_gather_while_a_batch_runs_and_each_gets_its_own_row() -> None:
    batcher, model = Batcher(0.0), Blocked()
    tower = Tower(model, lambda: 8)
    first = batcher.submit(tower, np.array([0]))
    assert model.began.wait(PATIENCE_S)
    futures = [first, *(batcher.submit(tower, np.array([number])) for number in range(1, 20))]
    model.go.set()
    assert [future.result(PATIENCE_S)[0] for future in futures] == list(range(20))
    assert model.sizes == [1, 8, 8, 1, 1, 1]
    assert batcher.close(PATIENCE_S)


def test_batches_have_few_sizes() -> None:
    """OpenVINO keeps packed weights for each."""
    for batch_size in (1, 12, 16, 48):
        sizes = {choose_size(waiting, batch_size) for waiting in range(1, 200)}
        assert max(sizes) == batch_size
        assert sizes <= {1, 4, 16, batch_size}
        assert all(choose_size(waiting, batch_size) <= waiting for waiting in range(1, 200))


def test_a_batch_waits_for_what_is_being_decoded_and_for_nothing_else() -> None:
    sizes: list[int] = []

    def encode(arrays: np.ndarray) -> np.ndarray:
        sizes.append(len(arrays))
        return rows(arrays)

    batcher = Batcher(float(PATIENCE_S))
    coming = 1
    tower = Tower(encode, lambda: 2, lambda: coming)
    first = batcher.submit(tower, np.array([1]))
    second = batcher.submit(tower, np.array([2]))  # which fills it
    assert [first.result(PATIENCE_S)[0], second.result(PATIENCE_S)[0]] == [1, 2]
    coming = 0
    assert batcher.submit(tower, np.array([3])).result(PATIENCE_S)[0] == 3
    assert sizes == [2, 1]
    assert batcher.close(PATIENCE_S)


def test_an_input_on_which_the_model_fails_fails_alone() -> None:
    def encode(arrays: np.ndarray) -> np.ndarray:
        if (arrays == 13).any():
            raise RuntimeError("13")
        return rows(arrays)

    batcher, model = Batcher(0.0), Blocked(encode)
    tower = Tower(model, lambda: 32)
    futures = [batcher.submit(tower, np.array([number])) for number in range(20)]
    model.go.set()
    wait(futures, PATIENCE_S)
    for number, future in enumerate(futures):
        if number == 13:
            with pytest.raises(EngineError, match="RuntimeError"):
                future.result(0)
        else:
            assert future.result(0)[0] == number
    assert batcher.is_alive
    assert batcher.close(PATIENCE_S)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_no_vector_are_an_error_of_their_input(bad: float) -> None:
    def encode(arrays: np.ndarray) -> np.ndarray:
        vectors = rows(arrays)
        vectors[arrays[:, 0] == 1] = bad
        vectors[arrays[:, 0] == 2] = 0
        return vectors

    batcher, model = Batcher(0.0), Blocked(encode)
    tower = Tower(model, lambda: 32)
    futures = [batcher.submit(tower, np.array([number])) for number in range(4)]
    model.go.set()
    assert futures[0].result(PATIENCE_S)[0] == 0
    assert futures[3].result(PATIENCE_S)[0] == 3
    for place in (1, 2):
        with pytest.raises(EngineError, match="no vector"):
            futures[place].result(PATIENCE_S)
    batcher.close(PATIENCE_S)


def test_what_nobody_waits_for_any_more_is_not_run() -> None:
    batcher, model = Batcher(0.0), Blocked()
    tower = Tower(model, lambda: 8)
    first = batcher.submit(tower, np.array([0]))
    assert model.began.wait(PATIENCE_S)
    dropped = [batcher.submit(tower, np.array([number])) for number in range(1, 5)]
    kept = batcher.submit(tower, np.array([9]))
    assert all(future.cancel() for future in dropped)
    model.go.set()
    assert (first.result(PATIENCE_S)[0], kept.result(PATIENCE_S)[0]) == (0, 9)
    assert model.sizes == [1, 1]
    batcher.close(PATIENCE_S)


def test_a_thread_that_died_fails_its_batch_and_is_started_again() -> None:
    class Died(BaseException):
        pass

    def die(_: np.ndarray) -> np.ndarray:
        raise Died

    batcher = Batcher(0.0)
    ended = threading.Event()
    hook, threading.excepthook = threading.excepthook, lambda _: ended.set()
    try:
        with pytest.raises(EngineError, match="thread ended"):
            batcher.submit(Tower(die, lambda: 1), np.array([1])).result(PATIENCE_S)
        assert ended.wait(PATIENCE_S)
        batcher._thread.join(PATIENCE_S)
    finally:
        threading.excepthook = hook
    assert not batcher.is_alive
    batcher.restart()
    assert batcher.submit(Tower(rows, lambda: 1), np.array([5])).result(PATIENCE_S)[0] == 5
    batcher.close(PATIENCE_S)
