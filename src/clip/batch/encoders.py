"""Load the encoders that the options of a job ask for, and have them encode batches beside the caller's thread."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ..encoder import Encoder
from ..engine.devices import choose_devices
from ..errors import DeviceError
from ..images.windows import Windows
from ..parallel import make_thread_error
from ..store.parts import EMBEDDING, TEXT_EMBEDDING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..jobs.options import ModelOptions, PixelMode

T = TypeVar("T")
Features = dict[str, np.ndarray]  # float32 (B, D), by the column that they go into


def load_encoder(options: ModelOptions, decode: PixelMode = "exact") -> Encoder:
    """Return an encoder of these options. Raises: as Encoder."""
    return Encoder(
        options.name,
        device=options.device,
        precision=options.precision,
        batch_size=options.batch_size or "auto",
        threads=options.threads,
        untrained=options.untrained,
        decode=decode,
        architecture=options.architecture,
    )


def load_encoders(
    options: ModelOptions,
    decode: PixelMode,
    devices: str | None,
    load: Callable[[ModelOptions, PixelMode], Encoder] = load_encoder,
) -> list[Encoder]:
    """Return an encoder for each of some devices (`EmbedJob.devices`), or one for the device of the options.

    Raises:  DeviceError for devices that this machine lacks, and for some that compute in different precisions.
    """
    if devices is None:
        return [load(options, decode)]
    encoders = [load(replace(options, device=str(device)), decode) for device in choose_devices(devices)]
    first = encoders[0]
    for other in encoders[1:]:
        mine, theirs = ((one.computed_in, one.batch_size) for one in (first, other))
        if mine != theirs:
            of_first = f"{first.device} computes batches of {mine[1]} in {mine[0]}"
            found = f"{of_first}, {other.device} of {theirs[1]} in {theirs[0]}"
            remedy = "Pass `precision` and `batch_size` too, or devices of one kind."
            raise DeviceError(f"devices {devices!r}", found, "the same on all", remedy)
    return encoders


def encode_batch(crops: np.ndarray | Windows | None, tokens: np.ndarray | None, encoder: Encoder) -> Features:
    """Encode a batch, and resize its images where they are windows.

    Shapes:  B windows or uint8 (B, R, R, 3), int32 (B, L) -> float32 (B, D) for each column of vectors.
    """
    features: Features = {}
    if isinstance(crops, Windows):
        features[EMBEDDING] = encoder.encode_windows(crops)
    elif crops is not None:
        features[EMBEDDING] = encoder.encode_pixels(crops)
    if tokens is not None:
        features[EMBEDDING if crops is None else TEXT_EMBEDDING] = encoder.encode_tokens(tokens)
    return features


class Encoders:
    """The model on one or several devices, which take batches from one queue.

    On a GPU a thread for each of them encodes, while the caller's goes on: `ahead` batches are under way once it has
    waited for those before. One encoder on a CPU, which has the cores to itself, encodes in the caller's thread.
    """

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        self.first = encoders[0]
        self.count = len(encoders)
        self.ahead = self.count if self.count > 1 or self.first.device.type == "cuda" else 0
        self._idle: SimpleQueue[Encoder] = SimpleQueue()
        for encoder in encoders:
            self._idle.put(encoder)
        self._threads = ThreadPoolExecutor(self.count, thread_name_prefix="clip-encode") if self.ahead else None
        self._preparing: list[Future[None]] = []

    def prepare(self, images: int) -> None:
        """Begin to make each encoder ready for so many images, unless the caller's thread does the work."""
        if self._threads is not None:
            self._preparing = [self._submit(lambda encoder: encoder.warm_up(images)) for _ in range(self.count)]

    def encode(self, crops: np.ndarray | Windows | None, tokens: np.ndarray | None) -> Future[Features]:
        """Have an encoder that is free encode a batch; crops may be written again once there is a result.

        The result has what `encode_batch` returns, or raises what that does.
        """
        if self._threads is None:
            done: Future[Features] = Future()
            done.set_result(encode_batch(crops, tokens, self.first))
            return done
        for one in [one for one in self._preparing if one.done()]:
            self._preparing.remove(one)
            one.result()  # what went wrong there would go wrong again
        return self._submit(lambda encoder: encode_batch(crops, tokens, encoder))

    def close(self) -> None:
        """Drop the batches that no encoder has begun, and wait for the others."""
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)

    def _submit(self, work: Callable[[Encoder], T]) -> Future[T]:
        def run() -> T:
            encoder = self._idle.get()  # there is one, as there are no more threads than encoders
            try:
                return work(encoder)
            finally:
                self._idle.put(encoder)

        if self._threads is None:
            raise AssertionError("the caller's thread encodes")
        try:
            return self._threads.submit(run)
        except RuntimeError as exc:  # it is not shut down before the end, so it could start no thread
            raise make_thread_error() from exc
