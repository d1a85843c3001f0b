"""Where the processes of a run on a Ray cluster are, and how many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import InputError
from .fields import documented
from .options import check_counts

RunEngine = Literal["local", "ray"]
STALL_S = 600.0


@documented
@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """How a run is spread over a Ray cluster."""

    address: str | None = None
    """Address of a Ray cluster; auto: the one that this machine is part of; default: one is started on this machine."""
    actors: int | None = None
    """Processes that hold a model each; default: as many as the cluster has room for."""
    cpus_per_actor: float | None = None
    """Cores of each actor, for decoding and, without a GPU, for the model; default: a node's, divided by its GPUs."""
    gpus_per_actor: float | None = None
    """GPUs of each actor, 0.5 for two on one; default: 1 where the cluster has any, else 0."""
    stall_seconds: float = STALL_S
    """Seconds in which nothing is finished anywhere, after which the run ends with what the cluster says."""

    def __post_init__(self) -> None:
        check_counts(self, ("actors",))
        for name, least in (("cpus_per_actor", "more than 0"), ("gpus_per_actor", "0 or more")):
            value: float | None = getattr(self, name)
            if value is not None and not (value > 0 or (value == 0 and least == "0 or more")):
                raise InputError(f"`{name}`", f"found {value}", least, "Pass another.")
        if not self.stall_seconds > 0:
            raise InputError("`stall_seconds`", f"found {self.stall_seconds}", "more than 0", "Pass another.")
