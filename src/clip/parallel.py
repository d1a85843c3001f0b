"""Count cores and start threads: an ordered map that runs ahead of its consumer, a reader that does."""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from .errors import ResourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from .budgets import ByteBudget

T = TypeVar("T")
R = TypeVar("R")
# The most beside the main thread, by /proc/PID/task every 2 ms (LOG.md): on one core 9 of `clip embed --fast` and
# 11 of `clip search --where`, on two 15 and 12: six more for the second core.
THREADS_PER_CORE, OTHER_THREADS = 6, 5
ADDRESS_SPACE_BYTES = 4_000_000_000  # VmPeak of `clip embed --model sketch` on two cores, rounded up
LAST_ITEM_S = 2.0  # to wait at the end for the item that a reading thread is at

CGROUP = Path("/sys/fs/cgroup")


def available_cores(cgroup: Path = CGROUP) -> int:
    """Return how many cores this process may use: its affinity, within its container's CPU quota (cgroup v2 or v1)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota_file, period_file in (
        ("cpu.max", None),  # v2: "200000 100000", or "max 100000"
        ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"),  # v1: one number each, -1 for no limit
    ):
        try:
            words = (cgroup / quota_file).read_text().split()
            if period_file:
                words += (cgroup / period_file).read_text().split()
            quota, period = int(words[0]), int(words[1])
        except (OSError, ValueError, IndexError):
            continue  # another version of cgroups, no limit, or no cgroups
        if quota > 0 and period > 0:
            cores = min(cores, max(1, quota // period))
    return cores


def start_thread(target: Callable[[], object], name: str) -> threading.Thread:
    """Start a thread that ends with the process. Raises: ResourceError where the system starts none."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as exc:
        raise make_thread_error() from exc
    return thread


def make_thread_error(found: str = "the system starts no more") -> ResourceError:
    """Return the error for a thread that cannot be started."""
    remedy = "Raise the limit on processes (ulimit -u, or the container's pids) and on memory (ulimit -v)."
    return ResourceError("threads", found, remedy=remedy)


def check_resources() -> None:
    """Raise ResourceError where the system gives less than libraries need, some of which hang or abort without.

    That is address space, where it is limited, and threads: torch, OpenVINO, pyarrow and a run's decoders start one or
    two for each core, and others some more.
    """
    if hasattr(os, "setuid"):
        import resource  # here, as Windows has none

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY and limit < ADDRESS_SPACE_BYTES:
            found, expected = f"found a limit of {limit:,} bytes", f"at least {ADDRESS_SPACE_BYTES:,}"
            raise ResourceError("address space", found, expected, "Run: ulimit -v unlimited")
    wanted = THREADS_PER_CORE * available_cores() + OTHER_THREADS
    over = threading.Event()
    threads: list[threading.Thread] = []
    try:
        while len(threads) < wanted:
            threads.append(start_thread(over.wait, "clip-check"))
    except ResourceError as exc:
        raise make_thread_error(f"the system starts {len(threads):,}, and {wanted:,} are needed") from exc
    finally:
        over.set()
        for thread in threads:
            thread.join()


def map_ahead(
    function: Callable[[T], R], items: Iterable[T], *, workers: int, ahead: int, stop: Callable[[], None] = lambda: None
) -> Generator[R]:
    """Yield `function(item)` for each item, computed by `workers` threads, in the order of the items.

    At most `ahead` items are in work or waiting to be taken, so that a slow consumer stops the threads. An exception is
    raised at its item's turn. Closing the iterator drops the items that no thread has begun and waits for the others;
    `stop` is called before that wait, to shorten it.
    """
    source = iter(items)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="clip-decode")

    def submit(item: T) -> Future[R]:
        try:
            return pool.submit(function, item)
        except RuntimeError as exc:  # it is not shut down before the end, so it could start no thread
            raise make_thread_error() from exc

    try:
        waiting: deque[Future[R]] = deque(submit(item) for item in islice(source, ahead))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(submit(item) for item in islice(source, 1))
            yield result
    finally:
        stop()
        pool.shutdown(wait=True, cancel_futures=True)


def read_ahead(
    items: Iterable[T], size_bytes: Callable[[T], int], limit_bytes: int, budget: ByteBudget | None = None
) -> Generator[T]:
    """Yield the same items, taken from their source by a thread that is `limit_bytes` ahead, and at least one item.

    Where the source holds its items in a `budget`, that learns when the consumer waits for the source.

    An exception of the source is raised at its turn. Closing the iterator ends the thread at its next item, and waits
    up to LAST_ITEM_S for that: a thread that is inside a library when the interpreter ends may abort the process.
    """
    waiting: deque[tuple[T | None, int, BaseException | None]] = deque()  # items, or how it ended
    held = 0
    closed = False
    changed = threading.Condition()

    def put(item: T | None, size: int, end: BaseException | None = None) -> bool:
        nonlocal held
        with changed:
            changed.wait_for(lambda: closed or not held or held + size <= limit_bytes)
            held += size
            waiting.append((item, size, end))
            if budget:
                budget.end_wait()
            changed.notify_all()
            return closed

    def read() -> None:
        try:
            for item in items:
                if put(item, max(1, size_bytes(item))):
                    return
            put(None, 0, StopIteration())
        except BaseException as exc:  # noqa: BLE001  raised again in the consumer
            put(None, 0, exc)

    thread = start_thread(read, "clip-read")
    try:
        while True:
            with changed:
                if not waiting:
                    with budget.waiting_for(None) if budget else nullcontext():
                        changed.wait_for(lambda: waiting)
                item, size, end = waiting.popleft()
                held -= size
                changed.notify_all()
            if isinstance(end, StopIteration):
                return
            if end is not None:
                raise end
            yield cast("T", item)
    finally:
        with changed:
            closed = True
            changed.notify_all()
        thread.join(LAST_ITEM_S)
