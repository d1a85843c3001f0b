"""What the server counts, in Prometheus' form, in a registry of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        self._requests = Counter("clip_requests", "Requests answered.", ["route", "code"], registry=own)
        self._images = Counter("clip_images", "Images embedded or failed.", ["outcome"], registry=own)
        self._texts = Counter("clip_texts", "Texts embedded or failed.", ["outcome"], registry=own)
        self._rejected = Counter("clip_rejected", "Requests for which there was no room.", ["reason"], registry=own)
        self._seconds = Histogram(
            "clip_request_seconds", "From a request's header to its answer.", ["route"], registry=own, buckets=SECONDS
        )
        self._decode = Histogram("clip_decode_seconds", "To decode an image.", registry=own, buckets=SECONDS)
        self._infer = Histogram("clip_infer_seconds", "To run a batch.", ["kind"], registry=own, buckets=SECONDS)
        self._sizes = Histogram("clip_batch_size", "Images or texts of a batch.", ["kind"], registry=own, buckets=SIZES)

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a gauge that is read when it is asked for."""
        Gauge(f"clip_{name}", text, registry=self._registry).set_function(read)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def count_item(self, kind: str, outcome: str) -> None:
        """Count an image or a text."""
        (self._images if kind == "images" else self._texts).labels(outcome).inc()

    def count_rejection(self, reason: str) -> None:
        """Count a request that was not taken."""
        self._rejected.labels(reason).inc()

    def observe_decode(self, seconds: float) -> None:
        """Note how long an image took."""
        self._decode.observe(seconds)

    def observe_batch(self, kind: str, size: int, seconds: float) -> None:
        """Note a batch."""
        self._sizes.labels(kind).observe(size)
        self._infer.labels(kind).observe(seconds)

    def render(self) -> bytes:
        """Return all of it as text."""
        return generate_latest(self._registry)
