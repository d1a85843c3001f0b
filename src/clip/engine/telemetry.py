"""Import OpenVINO and NNCF without their telemetry. Knows nothing about CLIP."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

# OpenVINO's and NNCF's; writes an id below $HOME and reports from a child process, once it is imported.
TELEMETRY = "openvino_telemetry"


@contextmanager
def without_telemetry() -> Generator[None]:
    """Import what would report what it is used for as if that package were missing; it has a stub for then."""
    blocked = TELEMETRY not in sys.modules
    if blocked:
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # how `import` is told that there is none
    try:
        yield
    finally:
        if blocked:
            del sys.modules[TELEMETRY]
