"""embed_on_ray(job): the run of `embed`, whose shards the actors of a Ray cluster write.

The driver hands out numbers of shards and gets a few counts back; images, vectors and lists of ids never pass through
it. What an actor does is what one process of `embed` does, so a run may be begun here and finished on a cluster, and
the other way round.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..atomic_files import translate_os_errors
from ..batch.notes import Notes, advise
from ..batch.opening import open_source
from ..batch.run import make_limit_error
from ..errors import ClipError, InputError
from ..jobs.cluster import RayOptions
from ..jobs.embed import EmbedJob, EmbedReport, Progress
from ..object_paths import open_place
from ..records import STDIN
from ..store.lock import hold_lock
from ..store.writer import check_room
from .actors import Actors, Answer, choose_share, connect, describe
from .schedule import MOST_LOST, Schedule, Task
from .worker import Begun, Finished, Worker, Written

if TYPE_CHECKING:
    from collections.abc import Callable

TICK_S = 1.0  # between looks at what actors are at
BEGIN, LOAD, FINISH = Worker.begin.__name__, Worker.load.__name__, Worker.finish.__name__


def embed_on_ray(
    job: EmbedJob, cluster: RayOptions | None = None, progress: Callable[[Progress], None] | None = None
) -> EmbedReport:
    """Do what `clip.embed` does, on a Ray cluster; input, output and weights files are seen by all of its nodes.

    An actor that is lost costs nothing but the images since it last saved: another one takes its shards. A shard that
    costs three actors is written with its images isolated, so that the one to blame becomes a failure row.

    Raises:  as `clip.embed`; ResourceError where there is no cluster, or no room on it; ClipError where nothing is
             finished for `stall_seconds`, and for a shard that goes on to cost actors.
    """
    cluster = cluster or RayOptions()
    started = time.monotonic()
    _refuse(job)
    output = open_place(job.output)
    check_room(output)
    open_source(job)  # as it refuses an input that is not there before a cluster is asked
    with connect(cluster) as ray:
        share = choose_share(ray.nodes(), cluster)
        with translate_os_errors(output):
            output.mkdir(parents=True, exist_ok=True)
        with hold_lock(output) as lock:
            threads = job.model_options.threads or max(1, int(share.cpus))
            mine = _prepare_job(job, threads)
            actors = Actors(ray, share, (mine, os.getcwd(), lock, threads))  # noqa: PTH109  a text travels
            driver = _Driver(job, partial(describe, ray), actors, cluster.stall_seconds, progress)
            try:
                begun, written, finished = driver.run()
            finally:
                actors.stop()
    notes = Notes(written.warned, written.stored_turned, written.unread)
    unread = notes.count_unread(finished.ignored)
    return EmbedReport(
        output,
        **finished.counts,
        ignored=finished.ignored,
        seconds=time.monotonic() - started,
        resumed=begun.resumed,
        removed=begun.removed,
        renamed=begun.renamed,
        warned=notes.warned,
        stored_turned=notes.stored_turned,
        unread=unread,
        part="",
        unfinished=(),
        advice=advise(unread, notes.stored_turned, finished.empty),
    )


def _refuse(job: EmbedJob) -> None:
    reasons = {
        "part": (job.part is not None, "Leave out `part`: actors share the run by themselves."),
        "devices": (job.devices is not None, "Leave out `devices`: an actor has one GPU."),
        "min_cosine": (job.min_cosine is not None, "Run `clip tune`, and pass its precision and pixels."),
        f"{STDIN!r} as input": (STDIN in job.inputs, "Write the list to a file that all nodes see."),
    }
    for name, (is_there, remedy) in reasons.items():
        if is_there:
            raise InputError("`engine`", f"found ray and {name} too", "a run that actors can share", remedy)


def _prepare_job(job: EmbedJob, threads: int) -> EmbedJob:
    """Return the job as an actor does it: the driver counts the failures, and an actor uses its own cores only."""
    model = replace(job.model_options, threads=threads)
    return replace(job, model=model, workers=job.workers or threads, max_failures=None)


class _Driver:
    """Hands out the shards of one run, and adds up what comes back."""

    def __init__(
        self,
        job: EmbedJob,
        cluster: Any,
        actors: Actors,
        stall_s: float,
        progress: Callable[[Progress], None] | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start no actor yet. `cluster` describes the nodes, as `actors.describe` does."""
        self._job = job
        self._actors = actors
        self._describe = cluster
        self._stall_s = stall_s
        self._progress = progress
        self._clock = clock
        self._schedule: Schedule | None = None  # once the run is begun
        self._begun: Begun | None = None
        self._finished: Finished | None = None
        self._written = Written()  # by this run, in tasks that are done
        self._doing: dict[Any, str | Task] = {}
        self._live: dict[Any, Progress] = {}  # how far actors are with what they do
        self._idle: list[Any] = []
        self._losses = 0  # in a row, of actors that had nothing to write
        self._moved_at = clock()
        self._seen: object = None

    def run(self) -> tuple[Begun, Written, Finished]:
        """Write what is missing; return what was found, what was written, and what there is in the end."""
        for number in range(self._actors.wanted):
            self._call(self._actors.start(), BEGIN if number == 0 else LOAD)
        while self._begun is None or self._finished is None:
            for answer in self._actors.wait(TICK_S):
                self._take(answer)
            self._hand_out()
            self._live |= {actor: found for actor, found in self._actors.look() if actor in self._doing}
            self._report()
            self._check_motion()
        return self._begun, self._written, self._finished

    def _call(self, actor: Any, what: str | Task) -> None:
        self._doing[actor] = what
        if isinstance(what, Task):
            self._actors.call(actor, "write", what.shards, isolated=what.isolated)
        else:
            self._actors.call(actor, what)

    def _take(self, answer: Answer) -> None:
        """Take what has come of a call."""
        doing = self._doing.pop(answer.actor)
        self._live.pop(answer.actor, None)
        if answer.lost:
            self._replace(answer, doing)
            return
        self._losses = 0
        self._moved_at = self._clock()
        self._idle.append(answer.actor)
        if isinstance(answer.value, Begun):
            self._begun = answer.value
            self._schedule = Schedule(answer.value.missing, self._actors.wanted)
        elif isinstance(answer.value, Written) and isinstance(doing, Task) and self._schedule is not None:
            self._schedule.finish(doing, answer.value.seconds)
            self._written += answer.value
        elif isinstance(answer.value, Finished):
            self._finished = answer.value

    def _replace(self, answer: Answer, doing: str | Task) -> None:
        """Start another actor for one that is lost, and have its shards done again."""
        self._actors.drop(answer.actor)
        if isinstance(doing, Task) and self._schedule is not None:
            self._schedule.lose(doing, answer.lost)
        else:
            self._losses += 1
            if self._losses >= MOST_LOST * self._actors.wanted:
                found = f"lost {self._losses} actors that had nothing to write yet; the last one: {answer.lost}"
                raise ClipError("cluster", found, "actors that load the model", "Look at the memory of its nodes.")
        self._call(self._actors.start(), BEGIN if doing == BEGIN else LOAD)

    def _hand_out(self) -> None:
        """Give idle actors something to do: shards, or the last count."""
        if self._schedule is None:
            return
        while self._idle and (task := self._schedule.take()) is not None:
            self._call(self._idle.pop(), task)
        if self._idle and self._schedule.is_over and FINISH not in self._doing.values() and self._finished is None:
            self._call(self._idle.pop(), FINISH)

    def _report(self) -> None:
        """Report how many entries have a vector or a failure, those of unfinished shards included."""
        live = list(self._live.values())
        begun = self._begun
        if begun is None:
            if self._progress and live:
                self._progress(live[0])
            return
        done = begun.done + self._written.read
        read, failed = (
            done + sum(found.read for found in live),
            begun.failed + self._written.failed + sum(found.failed for found in live),
        )
        shards = begun.shards - len(begun.missing) + self._written.shards
        total = begun.total
        if failed > (allowed := self._job.allowed_failures(total or read)):
            raise make_limit_error(self._job, allowed, total or read)
        if self._progress:
            kept = done + sum(found.kept for found in live)
            read_bytes = self._written.bytes + sum(found.bytes for found in live)
            counts = (read, total, failed, begun.done, None, shards, begun.shards)
            self._progress(Progress(*counts, kept=kept, bytes=read_bytes))

    def _check_motion(self) -> None:
        """Raise ClipError where nothing has been finished anywhere for too long."""
        seen = [(found.phase, found.read, found.listing) for found in self._live.values()]
        if seen != self._seen:
            self._seen, self._moved_at = seen, self._clock()
        if self._clock() - self._moved_at < self._stall_s:
            return
        writing = sum(isinstance(doing, Task) for doing in self._doing.values())
        actors = f"{writing} actors write, {len(self._doing) - writing} load a model or wait for room"
        found = f"nothing was finished for {self._stall_s:g} s; {actors}; {self._describe()}"
        remedy = "Look at its nodes (ray status), or raise `stall_seconds`; run again: what is done is kept."
        raise ClipError("cluster", found, "images that are finished", remedy)
