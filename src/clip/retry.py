"""When to try again what may pass. Knows nothing about what is tried."""

from __future__ import annotations

RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})  # the server may answer otherwise in a while
