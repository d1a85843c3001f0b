"""When to try a server again, and how long to wait before that."""

from __future__ import annotations

import random
from dataclasses import dataclass

RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})  # HTTP; the server may answer otherwise in a while


@dataclass(frozen=True)
class Patience:
    """How often to try a server, and how long to wait for it."""

    attempts: int = 4  # in a row that achieve nothing
    timeout_s: float = 30.0  # for a connection, and between two pieces of an answer
    first_wait_s: float = 1.0  # before the second attempt; doubled before each later one
    max_wait_s: float = 30.0
    jitter: float = 0.0  # part of a wait that is drawn at random, up or down, so that clients do not return together

    def wait_s(self, attempt: int, at_least_s: float = 0.0) -> float:
        """Return the seconds to wait before an attempt, the second being 2. `at_least_s` is what the server asks for.

        No wait is longer than `max_wait_s`, whatever the server asks for.
        """
        wait_s = self.first_wait_s * 2 ** max(0, attempt - 2) * random.uniform(1 - self.jitter, 1 + self.jitter)
        return min(max(wait_s, at_least_s), self.max_wait_s)
