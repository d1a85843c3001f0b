"""Import OpenVINO and NNCF without their telemetry."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

# OpenVINO's and NNCF's; once imported, it writes an id below $HOME and reports from a child process.
TELEMETRY = "openvino_telemetry"


@contextmanager
def without_telemetry() -> Generator[None]:
    """Hide the telemetry package during an import; both libraries fall back to a stub where it is missing."""
    blocked = TELEMETRY not in sys.modules
    if blocked:
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # which makes `import` raise
    try:
        yield
    finally:
        if blocked:
            del sys.modules[TELEMETRY]
