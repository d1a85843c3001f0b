"""The models that are served, by every name that clients call them; each is loaded when it is first asked for."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..batch.encoders import load_encoder
from ..batch.replay import load_run_encoder
from ..encoder import Encoder
from ..errors import InputError, StoreMismatchError, UnknownModelError, quote
from ..jobs.options import ModelOptions
from ..store.reader import Store
from ..weights.releases import RELEASES
from ..weights.spellings import find_spelled
from .batcher import Tower
from .decoders import Decoders, make_decoding

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..jobs.serve import ServeJob
    from ..network.records import PreprocessSettings

TEXT_BATCH = 64  # texts; the engine's own


class ServedModel:
    """A model, and what a request needs of it."""

    def __init__(self, name: str, source: str, make_encoder: Callable[[], Encoder]) -> None:
        self.name, self.source = name, source
        self.names = _list_names(name, source)
        self.images = Tower(self._encode_pixels, lambda: self.encoder.batch_size, self._count_coming)
        self.texts = Tower(self._encode_tokens, lambda: TEXT_BATCH, kind="texts")
        self.make_encoder = make_encoder
        self._loading = threading.Lock()
        self._encoder: Encoder | None = None
        self._decoders: Decoders | None = None

    def load(self, find_decoders: Callable[[PreprocessSettings], Decoders]) -> None:
        """Load the weights, compile both towers and start the decoders, unless that is done. Raises: as Encoder."""
        with self._loading:
            if self._encoder is not None:
                return
            encoder = self.make_encoder()
            if encoder.needs_calibration:
                expected = "one that needs no images to be quantised by"
                raise InputError("`precision`", f"found {encoder.precision}", expected, "Pass bf16, say.")
            side = encoder.resolution_px
            encoder.encode_pixels(np.zeros((1, side, side, 3), np.uint8))  # compiles the towers
            encoder.encode_text([""])
            self._decoders = find_decoders(encoder.settings)
            self._decoders.wait_started()
            self._encoder = encoder

    @property
    def is_loaded(self) -> bool:
        """Whether it can be asked."""
        return self._encoder is not None

    @property
    def encoder(self) -> Encoder:
        """The encoder, which is loaded."""
        if self._encoder is None:
            raise RuntimeError(f"{self.name} is not loaded")
        return self._encoder

    @property
    def decoders(self) -> Decoders:
        """What decodes images for it."""
        if self._decoders is None:
            raise RuntimeError(f"{self.name} is not loaded")
        return self._decoders

    def tokenize(self, text: str, *, truncate: bool) -> np.ndarray:
        """Return the tokens of a text. Shapes: -> int32 (L,). Raises: TextTooLongError."""
        return self.encoder.tokenize([text], truncate=truncate)[0].numpy()

    def _encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        return self.encoder.encode_pixels(pixels)

    def _encode_tokens(self, tokens: np.ndarray) -> np.ndarray:
        return self.encoder.encode_text(torch.from_numpy(tokens)).float().cpu().numpy()

    def _count_coming(self) -> int:
        return 0 if self._decoders is None else self._decoders.under_way


class Models:
    """All models that are served."""

    def __init__(self, job: ServeJob, observe_decode: Callable[[float], None] = lambda _: None) -> None:
        """Take the names of a job, and the models of its indexes.

        Raises:  InputError for a name that occurs twice; StoreError for an index that is no output.
        """
        self._job, self._observe = job, observe_decode
        self._decoders: dict[PreprocessSettings, Decoders] = {}
        self._making = threading.Lock()
        self.all: list[ServedModel] = []
        self._by_name: dict[str, ServedModel] = {}
        self.of_index: list[ServedModel] = []
        """The model of each output to search in, in the order of `ServeJob.index`."""
        stores = [Store(output, job.root) for output in job.index]
        for text in job.models or (() if stores else (ModelOptions.name,)):
            name, options = _split_name(text, job.model)
            if any(model.name == name for model in self.all):
                raise InputError("`models`", f"found {name} twice", "each once", "Give one another name: NAME=PATH.")
            self._add(ServedModel(name, options.name, partial(load_encoder, options)))
        for store in stores:
            self.of_index.append(self._find_run_model(store))

    def _add(self, model: ServedModel) -> ServedModel:
        self.all.append(model)
        self._by_name |= {name: model for name in model.names if name not in self._by_name}
        return model

    def _find_run_model(self, store: Store) -> ServedModel:
        """Return the model of an output: the one of that name, which has to have the run's weights, or a new one."""
        manifest, device = store.manifest, self._job.model.device
        name = manifest.model
        model = self._by_name.get(name)
        if model in self.of_index:
            first = Store(self._job.index[self.of_index.index(model)]).manifest
            same = ("weights_sha256", "precision", "preprocess_settings", "untrained")
            if any(getattr(first, field) != getattr(manifest, field) for field in same):
                remedy = "Serve it by another process."
                raise StoreMismatchError(store.path, f"is of another {name} than the index before", remedy=remedy)
            return model
        if model is None:
            return self._add(ServedModel(name, name, partial(load_run_encoder, store, None, device)))
        model.make_encoder = partial(load_run_encoder, store, model.source, device)
        return model

    @property
    def first(self) -> ServedModel:
        """The model of requests that name none."""
        return self.all[0]

    @property
    def decoders(self) -> list[Decoders]:
        """What decodes for the models that are loaded."""
        return list(self._decoders.values())

    def find(self, name: object) -> ServedModel:
        """Return the model that a request names. Raises: UnknownModelError, InputError for what is no name."""
        if name is None or name == "":
            return self.first
        if not isinstance(name, str):
            raise InputError("model", f"found a {type(name).__name__}", "a model's name", "Pass one.")
        if (model := self._by_name.get(name) or self._by_name.get(find_spelled(name, RELEASES) or "")) is None:
            names = ", ".join(model.name for model in self.all)
            raise UnknownModelError("model", f"found {quote(name)}", f"one of {names}", "Ask GET /v1/models.")
        return model

    def load(self, model: ServedModel) -> None:
        """Load a model, unless it is. Raises: as Encoder."""
        model.load(self._find_decoders)

    def _find_decoders(self, settings: PreprocessSettings) -> Decoders:
        with self._making:
            if settings not in self._decoders:
                self._decoders[settings] = Decoders(self._job, make_decoding(self._job, settings), self._observe)
            return self._decoders[settings]

    def close(self) -> None:
        """End all decoders."""
        for decoders in self.decoders:
            decoders.close()


def _split_name(text: str, options: ModelOptions) -> tuple[str, ModelOptions]:
    """Return the name and the options of a model: NAME=PATH gives a file a name."""
    name, equals, path = text.partition("=")
    if equals and name and path and not Path(text).exists():
        return name, replace(options, name=path)
    return text, replace(options, name=text)


def _list_names(name: str, source: str) -> list[str]:
    """Return a model's names: its own, Immich's, those of the Hub, and without what cannot be in a path."""
    names = [name, name.replace("/", "-")]
    if (release := RELEASES.get(source)) is not None:
        plain = source.replace("/", "-").replace("@", "-").removesuffix("px")  # ViT-L-14-336, as open_clip has it
        names += [plain, f"{plain}__openai", *(copy.repository for copy in release.hub)]
    return list(dict.fromkeys(names))
