"""What answers requests, without HTTP: items in, vectors out, within the limits of the job.

Each item goes through decoding and a batch by itself, so that a bad image fails alone, and meets others only inside a
batch, in which it has its own row.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ClipError, ImageError, TextTooLongError
from ..parallel import start_thread
from ..records import Failure
from .batcher import Batcher
from .decoders import make_member
from .fetch import fetch
from .gallery import Galleries
from .inputs import AddressInput, ImageInput, TextInput
from .metrics import Metrics
from .models import Models
from .request_error import RequestError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from ..jobs.serve import ServeJob
    from .inputs import Input
    from .models import ServedModel

FETCHERS = 8  # images that are fetched at the same time
STUCK_S = 120.0  # a batch that takes longer never ends
RETRY_S = 1.0  # when to try again after a refusal for want of room
LOADING_RETRY_S = 5.0


@dataclass(frozen=True)
class Embedded:
    """The vector of an item, and what is known of the item."""

    features: np.ndarray  # float32 (D,), as the model gives them
    tokens: int = 0  # of a text, start and end among them; 0 for an image
    width: int = 0  # of an image [Unit: px]
    height: int = 0
    format: str = ""

    @property
    def vector(self) -> np.ndarray:
        """The features at unit length."""
        return self.features / np.linalg.norm(self.features)


class Service:
    """Models, decoders and batches, and how much of them is in use."""

    def __init__(self, job: ServeJob) -> None:
        """Make everything but the models. Raises: InputError for models of the same name."""
        self.job = job
        self.metrics = Metrics()
        self.models = Models(job, self.metrics.observe_decode)
        self.batcher = Batcher(job.traffic.wait_ms / 1000, self.metrics.observe_batch)
        self.galleries = Galleries(job, self.models)
        self._fetchers = ThreadPoolExecutor(FETCHERS, thread_name_prefix="clip-fetch")
        self.is_draining = False
        self.waiting = 0  # items that wait or are worked on
        self.requests = 0  # that are being answered
        self.held_bytes = 0  # of bodies
        self.started = time.time()
        self.load_error: Exception | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether the first model is loaded, and the indexes are open."""
        return self.models.first.is_loaded and self.galleries.is_open

    def begin(self) -> None:
        """Load the first model in a thread of its own."""
        start_thread(self._load_first, "clip-load")

    def _load_first(self) -> None:
        try:
            for model in (self.models.first, *self.models.of_index):
                self.models.load(model)
            self.galleries.open()
        except Exception as exc:  # noqa: BLE001  the server raises it again, and ends
            self.load_error = exc

    def close(self, wait_s: float = 0.0) -> bool:
        """End threads and processes; return whether no batch runs any more."""
        self._fetchers.shutdown(wait=False, cancel_futures=True)
        self.galleries.close()
        self.models.close()
        return self.batcher.close(wait_s)

    def explain_not_live(self) -> str | None:
        """Return why only a restart of the process would help; None if it works."""
        if self.batcher.busy_s > STUCK_S:
            return f"a batch has been running for {self.batcher.busy_s:.0f} s"
        return None

    def explain_not_ready(self) -> str | None:
        """Return why requests would be refused now; None if they would be taken."""
        if self.is_draining:
            return "the server is shutting down"
        if self.load_error is not None:
            return f"the model cannot be loaded: {self.load_error}"
        if not self.is_loaded:
            return "the model is being loaded"
        if not self.batcher.is_alive:
            return "the thread of the model has ended"
        errors = [decoders.error for decoders in self.models.decoders if decoders.error]
        return errors[0] if errors else self.explain_not_live()

    async def watch(self) -> None:
        """Restart what has died, until cancelled."""
        while True:
            await asyncio.sleep(1.0)
            self.batcher.restart()
            for decoders in self.models.decoders:
                if decoders.error:
                    await asyncio.to_thread(decoders.check)

    @contextmanager
    def admit(self, items: int) -> Generator[None]:
        """Count items as waiting during the block. Raises: RequestError where they are too many.

        A request of more items than may wait is taken when nothing else waits.
        """
        limits = self.job.traffic
        if items > limits.max_items:
            message = f"input: found {items:,} items, expected at most {limits.max_items:,}. Send several requests."
            raise RequestError(400, message, "too_many_items", "input")
        if self.waiting and self.waiting + items > limits.queue:
            self.metrics.count_rejection("queue")
            message = f"{self.waiting:,} images and texts are waiting, and {limits.queue:,} may. Try again later."
            raise RequestError(429, message, "overloaded", retry_after_s=RETRY_S)
        self.waiting += items
        try:
            yield
        finally:
            self.waiting -= items

    async def find_model(self, name: object) -> ServedModel:
        """Return the model that a request names, loaded. Raises: UnknownModelError, RequestError if it is not ready."""
        model = self.models.find(name)
        if self.is_draining:
            self.metrics.count_rejection("draining")
            raise RequestError(503, "the server is shutting down", "draining", retry_after_s=RETRY_S, close=True)
        if not model.is_loaded:
            if model is self.models.first:
                self.metrics.count_rejection("loading")
                message = str(self.explain_not_ready())
                raise RequestError(503, message, "model_not_ready", "model", retry_after_s=LOADING_RETRY_S)
            try:
                await asyncio.to_thread(self.models.load, model)
            except ClipError as exc:
                message = f"{model.name} cannot be loaded: {exc}"
                raise RequestError(503, message, "model_not_ready", "model") from exc
        return model

    async def embed(
        self, model: ServedModel, inputs: Sequence[Input], *, truncate: bool = False, keep_failures: bool = False
    ) -> list[Embedded | ClipError]:
        """Return what becomes of each item, in order; with `keep_failures` an error in the place of a bad one.

        Raises:  ImageError or TextTooLongError of the first bad item, RequestError for too many items, EngineError,
                 DecoderError. When cancelled, what has not begun is dropped.
        """
        with self.admit(len(inputs)):
            tasks = [asyncio.ensure_future(self._embed_item(model, item, truncate=truncate)) for item in inputs]
            try:
                if not keep_failures:
                    return list(await asyncio.gather(*tasks))
                return [await _keep_failure(task) for task in tasks]
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _embed_item(self, model: ServedModel, item: Input, *, truncate: bool) -> Embedded:
        if isinstance(item, TextInput):
            return await self._embed_text(model, item, truncate=truncate)
        if isinstance(item, AddressInput):
            item = await self._fetch(item)
        outcome, *_ = await asyncio.wrap_future(model.decoders.submit(make_member(item.place, item.data)))
        if isinstance(outcome, Failure):
            self.metrics.count_item("images", "failed")
            raise ImageError(item.place, outcome.message)
        features = await asyncio.wrap_future(self.batcher.submit(model.images, outcome.array))
        self.metrics.count_item("images", "embedded")
        row = outcome.row
        return Embedded(features, 0, row.width, row.height, row.format)

    async def _embed_text(self, model: ServedModel, item: TextInput, *, truncate: bool) -> Embedded:
        try:
            tokens = await asyncio.to_thread(model.tokenize, item.text, truncate=truncate)
        except TextTooLongError as exc:
            self.metrics.count_item("texts", "failed")
            error = exc.about(item.place)
            error.remedy = "Shorten it, or send truncate: true to drop the tail."
            raise error from exc
        features = await asyncio.wrap_future(self.batcher.submit(model.texts, tokens))
        self.metrics.count_item("texts", "embedded")
        return Embedded(features, int(tokens.argmax()) + 1)

    async def _fetch(self, item: AddressInput) -> ImageInput:
        """Return the image of a URL, where that is allowed."""
        if not self.job.allow_urls:
            message = (
                f"{item.place}: found a URL, expected the image itself: this server fetches none. Send a data URI."
            )
            raise RequestError(400, message, "url_not_allowed", item.place)
        limits = {"max_bytes": self.job.traffic.max_body_bytes, "seconds": self.job.fetch_seconds}
        loop = asyncio.get_running_loop()
        data = await loop.run_in_executor(self._fetchers, partial(fetch, item.url, item.place, **limits))
        return ImageInput(item.place, data)


async def _keep_failure(task: asyncio.Future[Embedded]) -> Embedded | ClipError:
    try:
        return await task
    except ClipError as exc:
        return exc
