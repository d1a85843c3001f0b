"""The models that are served, by every name that clients call them; each is loaded when it is first asked for."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..encoder import Encoder
from ..errors import InputError, UnknownModelError, quote
from ..weights.releases import RELEASES
from .batcher import Tower
from .decoders import Decoders

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..jobs.options import ModelOptions
    from ..jobs.serve import ServeJob
    from ..network.records import PreprocessSettings


class ServedModel:
    """A model, and what a request needs of it."""

    def __init__(self, name: str, options: ModelOptions) -> None:
        self.name = name
        self.names = _list_names(name, options.name)
        self.error: Exception | None = None  # why it could not be loaded
        self._options = options
        self._loading = threading.Lock()
        self._encoder: Encoder | None = None
        self._decoders: Decoders | None = None
        self.images = Tower(self._encode_pixels, lambda: self.encoder.batch_size, self._count_coming)
        self.texts = Tower(self._encode_tokens, lambda: TEXT_BATCH, kind="texts")

    def load(self, make_decoders: Callable[[PreprocessSettings], Decoders]) -> None:
        """Load the weights, compile both towers and start the decoders, unless that is done. Raises: as Encoder."""
        with self._loading:
            if self._encoder is not None:
                return
            options = self._options
            try:
                encoder = Encoder(
                    options.name,
                    device=options.device,
                    precision=options.precision,
                    batch_size=options.batch_size or "auto",
                    threads=options.threads,
                    untrained=options.untrained,
                    architecture=options.architecture,
                )
                if encoder.needs_calibration:
                    expected = "one that needs no images to be quantised by"
                    raise InputError("`precision`", f"found {options.precision}", expected, "Pass bf16, say.")
                side = encoder.resolution_px
                encoder.encode_pixels(np.zeros((1, side, side, 3), np.uint8))  # compiles the towers
                encoder.encode_text([""])
                self._decoders = make_decoders(encoder.settings)
                self._decoders.wait_started()
            except Exception as exc:
                self.error = exc
                raise
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


TEXT_BATCH = 64  # texts; the engine's own


class Models:
    """All models that are served."""

    def __init__(self, job: ServeJob, observe_decode: Callable[[float], None] = lambda _: None) -> None:
        """Take the names of a job. Raises: InputError for a name that occurs twice."""
        self._job, self._observe = job, observe_decode
        self._decoders: dict[PreprocessSettings, Decoders] = {}
        self._making = threading.Lock()
        self.all = [ServedModel(*_split_name(name, job.model)) for name in job.models]
        self._by_name: dict[str, ServedModel] = {}
        for model in self.all:
            if model.name in self._by_name:
                raise InputError(
                    "`models`", f"found {model.name} twice", "each once", "Give one another name: NAME=PATH."
                )
            self._by_name |= {name: model for name in model.names if name not in self._by_name}

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
        if (model := self._by_name.get(name)) is None:
            names = ", ".join(model.name for model in self.all)
            raise UnknownModelError("model", f"found {quote(name)}", f"one of {names}", "Ask GET /v1/models.")
        return model

    def load(self, model: ServedModel) -> None:
        """Load a model, unless it is. Raises: as Encoder."""
        model.load(self._find_decoders)

    def _find_decoders(self, settings: PreprocessSettings) -> Decoders:
        with self._making:
            if settings not in self._decoders:
                self._decoders[settings] = Decoders(self._job, settings, self._observe)
            return self._decoders[settings]

    def close(self) -> None:
        """End all decoders."""
        for decoders in self.decoders:
            decoders.close()


def _split_name(name: str, options: ModelOptions) -> tuple[str, ModelOptions]:
    """Return the name and the options of a model: NAME=PATH gives a file a name."""
    own, equals, path = name.partition("=")
    if equals and own and path and not Path(name).exists():
        return own, replace(options, name=path)
    return name, replace(options, name=name)


def _list_names(name: str, source: str) -> list[str]:
    """Return a model's names: its own, Immich's, those of the Hub, and without what cannot be in a path."""
    names = [name, name.replace("/", "-")]
    if (release := RELEASES.get(source)) is not None:
        plain = source.replace("/", "-").replace("@", "-").removesuffix("px")  # ViT-L-14-336, as open_clip has it
        names += [plain, f"{plain}__openai", *(copy.repository for copy in release.hub)]
    return list(dict.fromkeys(names))
