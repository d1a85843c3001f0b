"""Actors of a Ray cluster: start them, call them, hear what came of a call, and notice that one is gone."""

from __future__ import annotations

import logging
import os
import signal
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ClipError, MissingExtraError, ResourceError
from .worker import Worker

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from ..jobs.cluster import RayOptions

STOP_S = 10.0  # for actors to save what they have when a run ends early
CALLS_AT_ONCE = 2  # one that does work, and `look` or `stop`


@dataclass(frozen=True)
class Share:
    """What of a node an actor takes, and how many of them the cluster has room for."""

    cpus: float
    gpus: float
    actors: int


@dataclass(frozen=True)
class Answer:
    """What came of a call."""

    actor: Any
    value: object = None
    lost: str = ""  # why there is no value: the actor is gone, or it failed in a way that is no error of ours


class Actors:
    """The actors of one run, and the calls that they are at."""

    def __init__(self, ray: Any, share: Share, arguments: tuple[Any, ...]) -> None:
        """Start none yet; `arguments` are a Worker's."""
        self._ray = ray
        options = {"num_cpus": share.cpus, "num_gpus": share.gpus, "max_concurrency": CALLS_AT_ONCE}
        # The driver starts another one itself, as it must know which shards the first one had.
        self._class = ray.remote(Worker).options(max_restarts=0, scheduling_strategy="SPREAD", **options)
        self._arguments = arguments
        self.wanted = share.actors
        self._calls: dict[Any, Any] = {}  # the actor of each call that does work, by what will be its value
        self._looks: dict[Any, Any] = {}  # likewise of each `look`

    def start(self) -> Any:
        """Start an actor, where and when the cluster has room for it."""
        return self._class.remote(*self._arguments)

    def call(self, actor: Any, method: str, *given: Any, **named: Any) -> None:
        """Have an actor do work; it does one such thing at a time."""
        self._calls[getattr(actor, method).remote(*given, **named)] = actor

    def wait(self, seconds: float) -> list[Answer]:
        """Return what has come of calls; wait so long for the first. Raises: the error of ours that a call raised."""
        ready, _ = self._ray.wait(list(self._calls), timeout=seconds)
        return [self._get(reference, self._calls.pop(reference)) for reference in ready]

    def look(self) -> list[tuple[Any, Any]]:
        """Return how far actors say they are that were asked before, and ask all anew that do not owe an answer."""
        found: list[tuple[Any, Any]] = []
        if self._looks:
            ready, _ = self._ray.wait(list(self._looks), num_returns=len(self._looks), timeout=0)
            for reference in ready:
                actor = self._looks.pop(reference)
                with suppress(self._ray.exceptions.RayError):  # the call that does work tells that it is gone
                    found.append((actor, self._ray.get(reference)))
        asked = list(self._looks.values())
        self._looks |= {actor.look.remote(): actor for actor in self._calls.values() if actor not in asked}
        return found

    def drop(self, actor: Any) -> None:
        """End an actor, so that it writes nothing more, if it is there after all."""
        self._ray.kill(actor, no_restart=True)

    def stop(self) -> None:
        """End all: those at work may save what they have."""
        with suppress(self._ray.exceptions.RayError):
            for actor in self._calls.values():
                actor.stop.remote()
            self._ray.wait(list(self._calls), num_returns=max(1, len(self._calls)), timeout=STOP_S)
        for actor in self._calls.values():
            with suppress(self._ray.exceptions.RayError):
                self.drop(actor)

    def _get(self, reference: Any, actor: Any) -> Answer:
        errors = self._ray.exceptions
        try:
            return Answer(actor, self._ray.get(reference))
        except errors.RayTaskError as exc:
            cause = exc.cause
            if isinstance(cause, ClipError):
                raise cause from None  # Ray's own trace is of its processes
            return Answer(actor, lost=f"{type(cause).__name__}: {cause}")
        except errors.RayError as exc:
            return Answer(actor, lost=str(exc).strip().partition("\n")[0])


@contextmanager
def connect(options: RayOptions) -> Generator[Any]:
    """Give Ray, connected to a cluster in a `with` block; one that the program is connected to already stays.

    Raises:  MissingExtraError; ResourceError where there is no cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as exc:
        raise MissingExtraError("Ray", "is not installed", remedy='Run: pip install "clip-turbo[ray]"') from exc
    if ray.is_initialized():
        yield ray
        return
    try:
        with _keeping_signals():
            ray.init(address=options.address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as exc:
        found = f"found no cluster at {options.address or 'this machine'} ({str(exc).partition(chr(10))[0]})"
        remedy = "Start one with `ray start --head`, or leave `address` out."
        raise ResourceError("`address`", found, "a Ray cluster", remedy) from exc
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _keeping_signals() -> Generator[None]:
    """Take back the handlers that Ray replaces: its own wait for half a minute, and exit."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    if threading.current_thread() is threading.main_thread():
        for number, handler in zip(numbers, handlers, strict=True):
            if handler is not None:  # as one is that was not set from Python
                signal.signal(number, handler)


def choose_share(nodes: Iterable[dict[str, Any]], options: RayOptions) -> Share:
    """Return what an actor takes, and how many fit, from the cluster's list of nodes.

    Raises:  ResourceError where not one fits.
    """
    resources = [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    gpus_there = [found.get("GPU", 0.0) for found in resources]
    gpus = options.gpus_per_actor if options.gpus_per_actor is not None else float(any(gpus_there))
    if gpus:
        resources = [found for found in resources if found.get("GPU", 0) > 0]
    cpus = options.cpus_per_actor or min(
        (found["CPU"] // max(1, found.get("GPU", 0) // gpus if gpus else 1) for found in resources), default=0
    )
    fitting = sum(
        int(min(found["CPU"] // cpus if cpus else 0, found.get("GPU", 0) // gpus if gpus else float("inf")))
        for found in resources
    )
    if not fitting:
        each = f"{cpus:g} cores and {gpus:g} GPUs" if gpus else f"{cpus:g} cores"
        remedy = "Pass smaller `cpus_per_actor` and `gpus_per_actor`."
        raise ResourceError("cluster", f"has no node with {each} ({resources})", "room for one actor", remedy)
    return Share(cpus, gpus, options.actors or fitting)


def describe(ray: Any) -> str:
    """Return what the cluster says of itself, in words."""
    nodes = ray.nodes()
    alive = sum(node["Alive"] for node in nodes)
    there, free = ray.cluster_resources(), ray.available_resources()
    kinds = (f"{free.get(kind, 0):g} of {there[kind]:g} {kind}s free" for kind in ("CPU", "GPU") if kind in there)
    return f"{alive} of {len(nodes)} nodes are alive, {', '.join(kinds)}"
