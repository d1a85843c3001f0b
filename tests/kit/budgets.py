"""A budget of bytes that remembers its high-water mark."""

from clip.budgets import ByteBudget, Hold


class WatchedBudget(ByteBudget):
    """Knows the most that it has held."""

    peak_bytes = 0

    def _count(self, hold: Hold, size_bytes: int) -> None:
        super()._count(hold, size_bytes)
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)
