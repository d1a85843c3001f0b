"""Run a model's lean graphs on a back end: batches in, features out.

A tower is folded and compiled when it is first used, once for bytes and once for floats, as the input's type is part of
a compiled graph; most programs use one of them. A batch that does not fit into memory is halved, and the run continues.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import DeviceError, InputError
from ..memory import FilePages, return_freed_memory
from ..network.records import (
    BYTE_MAX,
    AnyArchitecture,
    PeArchitecture,
    PooledToken,
    PreprocessSettings,
    SiglipArchitecture,
)
from ..text.tokens import check_ids
from .backend import Backend, Graph
from .devices import MAX_REASON, limit_threads
from .fold import fold_image_tower, fold_text_tower
from .fold_pe import fold_pe_image
from .fold_siglip import fold_siglip_image, fold_siglip_text
from .resize import resize_windows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..images.windows import Windows
    from ..network.records import Checkpoint
    from .quantize import Calibration
    from .tower import ImageTower

LENGTH_BUCKET = 8  # tokens: texts run at the next multiple of it, so that few shapes occur
# Blocks are folded side by side, each on one thread: torch's own threads would wait for one another, 1.2 s instead of
# 0.3 s for ViT-B/32 where other work has the cores.
FOLDING_THREADS = 1
TEXT_BATCH = 64  # texts; several hundred rows a product even for short ones
ALLOCATION_FAILED = ("bad_alloc", "out of memory", "cannot allocate", "could not create a memory")

_log = logging.getLogger("clip")
_folding = threading.Lock()  # torch has one thread count for the process, and folding changes it meanwhile


class Engine:
    """Both towers of a model on a back end. Safe to call from several threads."""

    def __init__(
        self,
        state_dict: Mapping[str, Tensor],
        architecture: AnyArchitecture,
        settings: PreprocessSettings,
        backend: Backend,
        batch_size: int | None = None,
        *,
        pages: FilePages | None = None,
    ) -> None:
        """Take the weights, of which `pages` are those that lie in a file, as far as that is known."""
        backend.check(architecture)
        self.architecture = architecture
        self.settings = settings
        self.backend = backend
        self.batch_size = batch_size or backend.batch_size(architecture)
        self._text_batch = TEXT_BATCH
        self._state_dict = state_dict
        self._pages = pages or FilePages((), ())
        self._graphs: dict[torch.dtype | None, Graph] = {}  # by the dtype of pixels; of the text tower by None
        self._building = threading.Lock()

    def calibrate(self, calibration: Calibration) -> None:
        """Set the images to quantise by.

        Raises:  InputError for a precision that needs none, and for a model that has run.
        """
        with self._building:
            if self.backend.needs_calibration and any(key is not None for key in self._graphs):
                raise InputError("calibrate", "found a model that has run", "a new one", "Make another Encoder.")
            self.backend.calibrate(calibration)

    def prepare(self, key: torch.dtype | None) -> None:
        """Fold and compile the tower for pixels of a dtype, or with None the text tower, unless that is done."""
        self._graph(key)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Encode uint8 or float32 images.

        Shapes:  (B, R, R, 3) -> (B, D) on the device.
        Units:   0..255, floats too.
        """
        side = self.settings.resolution_px
        if pixels.shape[1:] != (side, side, 3) or pixels.dtype not in (torch.uint8, torch.float32):
            found = f"found {tuple(pixels.shape)} of {pixels.dtype}"
            remedy = "Preprocess the images for this model."
            raise InputError("`pixels`", found, f"(B, {side}, {side}, 3) of bytes or float32", remedy)
        return self._run(pixels.dtype, len(pixels), lambda start, stop: (pixels[start:stop],))

    def warm_up(self, images: int) -> None:
        """Do all that comes before the first batch of so many images: fold, compile, have kernels chosen."""
        side = self.settings.resolution_px
        self.encode_pixels(torch.zeros(min(images, self.batch_size), side, side, 3, dtype=torch.uint8))

    def encode_windows(self, windows: Windows) -> Tensor:
        """Resize and crop images on the device as Pillow does, and encode them. Shapes: N windows -> (N, D) there."""
        settings, device = self.settings, self.backend.device

        def pixels(start: int, stop: int) -> tuple[Tensor]:
            with torch.inference_mode():
                return (resize_windows(windows[start:stop], settings, device),)

        return self._run(torch.uint8, len(windows), pixels)

    def encode_image(self, image: Tensor) -> Tensor:
        """Encode images as the reference's transform returns them, or as bytes.

        One affine step turns normalised floats back into 0..255, which the graph reads.

        Shapes:  (B, 3, R, R) -> (B, D) on the device.
        """
        side = self.settings.resolution_px
        if image.shape[1:] != (3, side, side) or not (image.is_floating_point() or image.dtype == torch.uint8):
            found = f"found {tuple(image.shape)} of {image.dtype}"
            remedy = "Preprocess it for this model; image[None] makes a batch of one."
            raise InputError("`image`", found, f"(B, 3, {side}, {side}) of floats or bytes", remedy)
        image = image.detach()
        if image.dtype == torch.uint8:
            return self.encode_pixels(image.permute(0, 2, 3, 1))  # (B, 3, R, R) -> (B, R, R, 3)
        where = image.device if self.backend.device.type == "cpu" else self.backend.device
        scales, shifts = (
            torch.tensor(values, dtype=torch.float32, device=where).mul(BYTE_MAX).view(3, 1, 1)
            for values in (self.settings.std, self.settings.mean)
        )

        def pixels(start: int, stop: int) -> tuple[Tensor]:
            part = image[start:stop].to(where, torch.float32)
            return ((part * scales).add_(shifts).permute(0, 2, 3, 1),)

        return self._run(torch.float32, len(image), pixels)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode a token table.

        Where tokens after a text's end cannot change its features, a batch is only as long as its longest text, and
        texts are batched in the order of their lengths.

        Shapes:  int (T, L) -> (T, D) on the device.
        """
        tokens = tokens.detach().cpu()
        self._check_tokens(tokens)
        ends = find_ends(tokens, self.architecture.pooled_token)
        order = ends.argsort(stable=True)
        tokens, ends = tokens[order], ends[order]
        by_length = self._run(
            None, len(tokens), lambda start, stop: make_text_inputs(tokens[start:stop], ends[start:stop])
        )
        features = torch.empty_like(by_length)
        features[order.to(by_length.device)] = by_length
        return features

    def _check_tokens(self, tokens: Tensor) -> None:
        check_ids(tokens, self.architecture.vocab_size)  # first: with another vocabulary lengths differ too
        context = self.architecture.context_length
        if tokens.ndim != 2 or not 0 < tokens.shape[1] <= context or tokens.is_floating_point():
            found = f"found {tuple(tokens.shape)} of {tokens.dtype}"
            raise InputError("`tokens`", found, f"integers (T, {context})", "Make them with Encoder.tokenize(texts).")

    def _run(self, key: torch.dtype | None, count: int, inputs: Callable[[int, int], tuple[Tensor, ...]]) -> Tensor:
        """Return the features of `count` images or texts; `inputs` makes the batch from start to stop."""
        features = [torch.empty(0, self.architecture.embed_dim, dtype=self.backend.dtype, device=self.backend.device)]
        done = 0
        while done < count:
            size = self._text_batch if key is None else self.batch_size
            try:
                part = self._graph(key)(*inputs(done, min(done + size, count)))
            except (RuntimeError, MemoryError) as exc:
                if not _is_out_of_memory(exc):
                    raise
                self._halve(key, size, exc)
            else:
                features.append(part)
                done += len(part)
        return torch.cat(features)

    def _graph(self, key: torch.dtype | None) -> Graph:
        with self._building:
            if key not in self._graphs:
                self._graphs[key] = self._text_graph() if key is None else self._image_graph(key)
                return_freed_memory()
            return self._graphs[key]

    def _image_graph(self, dtype: torch.dtype) -> Graph:
        with _folding, limit_threads(FOLDING_THREADS):
            tower = self._fold_image()
            self._give_back()
        return self.backend.image_graph(tower, dtype, self.batch_size)

    def _fold_image(self) -> ImageTower:
        a, weights, settings, release = self.architecture, self._state_dict, self.settings, self._pages.release
        if isinstance(a, SiglipArchitecture):
            return fold_siglip_image(weights, a, settings, release)
        if isinstance(a, PeArchitecture):
            return fold_pe_image(weights, a, settings, release)
        return fold_image_tower(weights, a, settings, release)

    def _text_graph(self) -> Graph:
        with _folding, limit_threads(FOLDING_THREADS):
            if isinstance(self.architecture, SiglipArchitecture):
                tower = fold_siglip_text(self._state_dict, self.architecture, self._pages.release)
            else:
                tower = fold_text_tower(self._state_dict, self.architecture, self._pages.release)
            self._give_back()
        return self.backend.text_graph(tower, self._text_batch)

    def _give_back(self) -> None:
        """Give back what folding took beside the tower, before the back end makes its own copy of that."""
        self._pages.release()
        return_freed_memory()

    def _halve(self, key: torch.dtype | None, size: int, exc: Exception) -> None:
        """Halve the batch, unless another thread just did, and drop the graphs, which are made for a size."""
        reason = next(iter(str(exc).splitlines()), type(exc).__name__)
        if size == 1:
            found = f"out of memory for a batch of 1 ({reason[:MAX_REASON]})"
            raise DeviceError(self.backend.device, found, remedy="Free some, or use another device.") from exc
        with self._building:
            if size != (self._text_batch if key is None else self.batch_size):
                return
            if key is None:
                self._text_batch //= 2
                self._graphs.pop(None, None)
            else:
                self.batch_size //= 2
                self._graphs = {old: graph for old, graph in self._graphs.items() if old is None}
        _log.warning("%s: out of memory for a batch of %d; continuing with %d", self.backend.device, size, size // 2)


def make_engine(checkpoint: Checkpoint, backend: Backend, batch_size: int | None) -> Engine:
    """Return the engine of a checkpoint, whose weights leave memory as they are folded."""
    weights = checkpoint.state_dict.values()
    pages = FilePages([(weight.data_ptr(), weight.nbytes) for weight in weights], checkpoint.files)
    return Engine(
        checkpoint.state_dict, checkpoint.architecture, checkpoint.preprocess, backend, batch_size, pages=pages
    )


def _is_out_of_memory(exc: Exception) -> bool:
    """Return whether memory ran out; OpenVINO and torch on a CPU have no exception type for it, only messages."""
    out_of_memory = isinstance(exc, (MemoryError, torch.OutOfMemoryError))
    return out_of_memory or any(words in str(exc).lower() for words in ALLOCATION_FAILED)


def find_ends(tokens: Tensor, pooled: PooledToken) -> Tensor:
    """Return where each text is read: at the token of the highest id, its end, or at the last one, a pad or not.

    Shapes:  int (T, L) -> int (T,).
    """
    return tokens.argmax(dim=-1) if pooled == "highest" else tokens.new_full((len(tokens),), tokens.shape[1] - 1)


def make_text_inputs(tokens: Tensor, ends: Tensor) -> tuple[Tensor, ...]:
    """Make the inputs of `graph.text_features`, as long as the longest text, rounded up to a whole bucket.

    Shapes:  int (T, L) and the places of the end tokens, int (T,) -> int32 (T, L'), int32 (T, L'), int32 (T,),
             float32 (T, 1, L').
    """
    longest = int(ends.max()) + 1
    length = min(-(-longest // LENGTH_BUCKET) * LENGTH_BUCKET, tokens.shape[1])
    places = torch.arange(length, device=tokens.device).expand(len(tokens), length)  # (T, L')
    zeros = torch.zeros(len(tokens), 1, length, dtype=torch.float32, device=tokens.device)
    after_end = zeros.masked_fill(places[:, None] > ends[:, None, None], -torch.inf)
    return tokens[:, :length].to(torch.int32), places.to(torch.int32), ends.to(torch.int32), after_end
