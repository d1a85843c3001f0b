"""Decide for each call of a model whether the lean graph runs it, and keep the graphs.

Per tower: the first call that may take the fast path folds and compiles it. Later calls take it as long as the tower
is what was folded (watch.py). A call that finds it changed is eager; if the next one finds it unchanged since, it is
folded again. What was folded is kept until then, so that a change that is undone costs nothing.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ..engine.backend_openvino import is_forked
from ..engine.devices import MAX_REASON, make_backend
from ..engine.engine import Engine
from ..errors import ClipError
from ..network.records import PreprocessSettings
from .digest import Digest, equal
from .loaded_model import find_change, find_patched_function, read_architecture
from .modes import find_mode, is_plain
from .watch import Handouts, Watch, note_handout

if TYPE_CHECKING:
    from ..jobs.options import Precision
    from ..network.records import Architecture

TowerName = Literal["image", "text"]
# What each tower is made of, as attributes of the model; in `_modules` or `_parameters`, which hand out all they hold.
MEMBERS = {
    "image": ("visual",),
    "text": ("transformer", "token_embedding", "ln_final", "positional_embedding", "text_projection"),
}
HANDED_OUT_WITH = {"image": {"visual", "_modules"}, "text": {*MEMBERS["text"], "_modules", "_parameters"}}
OFF = ("0", "false", "off", "no")  # values of CLIP_FAST
GRADIENT = "a gradient may be wanted; torch.no_grad() or inference_mode() says that none is"
CHANGED = "the weights have changed; they are folded again once a call finds them unchanged"
FIRST = ""  # not folded yet

_log = logging.getLogger("clip")


class FastModule(nn.Module):
    """A module whose towers may be run by the lean graph, wherever that gives what its own `forward` gives."""

    fast: bool = True  # False keeps `encode_image` and `encode_text` from the lean graph
    precision: Precision = "reference"  # in which the lean graph computes, as of `Encoder`
    # nn.Module's own dicts, but that reading them is noted: who reads them is handed the parts.
    _modules: dict[str, nn.Module | None] = Handouts()  # pyright: ignore[reportAssignmentType]
    _parameters: dict[str, nn.Parameter | None] = Handouts()  # pyright: ignore[reportAssignmentType]

    def __getattr__(self, name: str) -> Any:
        note_handout(self, name)
        return super().__getattr__(name)

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles have of a model: not its compiled graphs."""
        return {name: value for name, value in self.__dict__.items() if name != "_fast_paths"}

    @staticmethod
    def lay_out(architecture: Architecture) -> nn.Module:
        """Return the network of an architecture as it is built, without memory for its weights."""
        raise NotImplementedError

    def fast_path(self, tower: TowerName = "image") -> str:
        """Return whether the next `encode_image` ("image") or `encode_text` ("text") runs the lean graph, and why not.

        It is one line, which begins with "fast" or "eager". What depends on the call's input is not looked at.
        """
        return explain(self, tower)

    def _encode_fast(self, tower: TowerName, given: Tensor) -> Tensor | None:
        # First, so that a compiler or an exporter sees nothing of the fast path.
        return None if torch.compiler.is_compiling() else encode_fast(self, tower, given)


def encode_fast(model: FastModule, tower: TowerName, given: Tensor) -> Tensor | None:
    """Return the features of images or tokens by the lean graph; None where eager has to compute them.

    Shapes:  (B, 3, R, R) of any dtype, or int (T, L) -> (B, D) or (T, D).
    """
    if find_obstacle(model) or not _fits(model, tower, given):
        return None
    engine = _paths_of(model).prepare(model, tower, given.requires_grad)
    if engine is None:
        return None
    dtype = _weight(model).dtype
    features = (engine.encode_image(given.type(dtype)) if tower == "image" else engine.encode_text(given)).to(dtype)
    # The CUDA graph's are of inference mode, which a caller under no_grad must not be given.
    return features.clone() if features.is_inference() and not torch.is_inference_mode_enabled() else features


def explain(model: FastModule, tower: TowerName) -> str:
    """Return whether the next call takes the fast path and, if not, why, in one line."""
    reason = find_obstacle(model)
    if reason is None:
        reason = _paths_of(model).find_reason(model, tower)
    if reason == FIRST:
        return "fast: the next call folds and compiles it"
    return f"eager: {reason}" if reason else "fast"


def find_switch(model: FastModule) -> str | None:
    """Return the switch that turns the fast path off, if one does."""
    if not model.fast:
        return "model.fast is False"
    if os.environ.get("CLIP_FAST", "").lower() in OFF:
        return "CLIP_FAST turns it off"
    return None


def find_obstacle(model: FastModule) -> str | None:
    """Return what keeps every call now from the fast path, apart from changes of the model."""
    device = _device(model)
    if device.type not in ("cpu", "cuda"):
        return f"the model is on {device}"
    if device.type == "cpu" and is_forked():
        return "this process was forked from one in which the lean graph runs"
    return find_switch(model) or find_mode(device)


def _fits(model: FastModule, tower: TowerName, given: Tensor) -> bool:
    """Return whether the lean graph takes this input; of any other eager raises its error."""
    if not isinstance(given, Tensor) or not is_plain(given, _device(model)):  # pyright: ignore[reportUnnecessaryIsInstance]
        return False
    return _image_fits(model, given) if tower == "image" else _tokens_fit(model, given)


def _weight(model: FastModule) -> Tensor:
    """Return the weight whose dtype is the model's; one on meta, where no fast path is, if parts are missing."""
    visual = model.__dict__["_modules"].get("visual")
    weight = getattr(getattr(visual, "conv1", None), "weight", None)
    return weight if isinstance(weight, Tensor) else torch.empty(0, device="meta")


def _device(model: FastModule) -> torch.device:
    return _weight(model).device


def _image_fits(model: FastModule, image: Tensor) -> bool:
    side = getattr(model.__dict__["_modules"]["visual"], "input_resolution", None)
    fits = image.ndim == 4 and image.shape[1:] == (3, side, side) and not image.is_complex()
    return fits and model.dtype == _weight(model).dtype  # which a subclass may have otherwise


def _tokens_fit(model: FastModule, tokens: Tensor) -> bool:
    if tokens.dtype not in (torch.int32, torch.int64) or tokens.ndim != 2 or tokens.shape[1] != model.context_length:
        return False
    return not len(tokens) or (int(tokens.min()) >= 0 and int(tokens.max()) < model.vocab_size)


class FastPaths:
    """The fast paths of a model's two towers. It stays in this process: copies and pickles of the model lack it."""

    def __init__(self, model: FastModule) -> None:
        self._model = weakref.ref(model)
        self._process = os.getpid()
        self._towers: dict[TowerName, _TowerPath] = {"image": _TowerPath("image"), "text": _TowerPath("text")}
        self._lock = threading.Lock()
        self._reader: int | None = None  # the thread that reads the model for us, whose handouts do not count

    def belongs_to(self, model: FastModule) -> bool:
        """Return whether this was made for this model, in this process: not for one it was copied from, or forked."""
        return self._model() is model and self._process == os.getpid()

    def note_handout(self, name: str) -> None:
        """Note that a part of the model, or all parts, is in somebody's hands."""
        if self._reader != threading.get_ident():
            for tower in self._towers.values():
                tower.handed_out |= name in HANDED_OUT_WITH[tower.name]

    def prepare(self, model: FastModule, tower: TowerName, requires_grad: bool) -> Engine | None:
        """Return the engine for a call now, folding the tower where that is due; None where eager has to run."""
        with self._lock:
            self._reader = threading.get_ident()
            try:
                path = self._towers[tower]
                reason = path.find_reason(model, requires_grad, peek=False)
                if reason == FIRST:
                    reason = path.fold(model)
                return None if reason else path.engine
            finally:
                self._reader = None

    def find_reason(self, model: FastModule, tower: TowerName) -> str | None:
        """Return why the next call is eager: None if it takes the fast path, FIRST if it folds the tower before."""
        with self._lock:
            self._reader = threading.get_ident()
            try:
                return self._towers[tower].find_reason(model, requires_grad=False, peek=True)
            finally:
                self._reader = None


def _paths_of(model: FastModule) -> FastPaths:
    paths = model.__dict__.get("_fast_paths")
    if paths is None or not paths.belongs_to(model):
        paths = model.__dict__["_fast_paths"] = FastPaths(model)
    return paths


class _TowerPath:
    """A tower's watch and, once folded, its engine and the digest of the weights that it was folded from."""

    def __init__(self, name: TowerName) -> None:
        self.name: TowerName = name
        self.handed_out = True  # so that somebody may have written to it since its weights were last compared
        self.engine: Engine | None = None
        self._precision: Precision = "reference"  # which `engine` computes in
        self._folded: Digest = []  # of the weights that `engine` was folded from
        self._changed: Digest | None = None  # of the weights of the last call, where they were others
        self._watch: Watch | None = None
        self._change: str | None = None  # what of the network in `_watch` is not as OpenAI builds it
        self._obstacle: str | None = None  # that, or what bars its weights from the lean graph
        self._original: tuple[Architecture, nn.Module] | None = None  # the network as OpenAI builds it

    def find_reason(self, model: FastModule, requires_grad: bool, *, peek: bool) -> str | None:
        """Return why a call now is eager; None if `engine` may run it, FIRST if the tower is to be folded before.

        With `peek` this is no call: the weights that it finds do not count as those of the last one.
        """
        if torch.is_grad_enabled() and _weight(model).requires_grad:  # training does not wait for a look
            return GRADIENT
        same = self._look(model)
        watch = self._watch
        if self._obstacle or watch is None:
            return self._obstacle or "the model has no such tower"
        if torch.is_grad_enabled() and (requires_grad or watch.requires_grad()):
            return GRADIENT
        certain = same and not self._is_in_hands(watch)
        if not certain and self._original is not None and watch.masks_differ(self._original[1]):
            return "the mask of a text block was changed"
        if self.engine is None or self._precision != model.precision:
            return FIRST
        if certain:
            return None if self._changed is None else FIRST
        self.handed_out = False  # before the weights are read: whoever is handed one meanwhile sets it again
        return self._compare(watch.take_digest(), peek=peek)

    def _compare(self, values: Digest, *, peek: bool) -> str | None:
        """Compare the weights with those that were folded and, where they are others, with those of the last call."""
        if equal(values, self._folded):
            self._changed = None
            return None
        if self._changed is not None and equal(values, self._changed):
            return FIRST
        if peek:
            self.handed_out = True  # the next call has to find this again
        else:
            self._changed = values
        return CHANGED

    def _is_in_hands(self, watch: Watch) -> bool:
        return self.handed_out or watch.is_held()

    def _look(self, model: FastModule) -> bool:
        """Bring the watch up to date, and return whether all shows as it did; else the weights are to be compared."""
        watch = self._watch
        if watch is None or not watch.structure_is_kept(thoroughly=self._is_in_hands(watch)):
            watch = self._watch = None
            try:
                watch = Watch(model, MEMBERS[self.name])
                self._change = self._find_change(model, watch)
            except (ClipError, AttributeError, KeyError, TypeError, IndexError, ValueError):
                self._change = "the network is not built as OpenAI's"
            self._watch = watch
        elif watch.weights_show_no_change():
            return True
        self._obstacle = (watch.look_at_tensors() if watch is not None else None) or self._change
        self.handed_out = True
        return False

    def _find_change(self, model: FastModule, watch: Watch) -> str | None:
        architecture = read_architecture(model)
        if self._original is None or self._original[0] != architecture:
            self._original = architecture, model.lay_out(architecture).eval()
        prefixes = tuple(f"{name}." for name in MEMBERS[self.name])
        change = find_change(model, self._original[1], prefixes) or find_patched_function(watch.modules)
        return f"{change} since it was built" if change else None

    def fold(self, model: FastModule) -> str | None:
        """Fold and compile the tower as it is now; return why that cannot be, which is None if it can."""
        settings = model.preprocess_settings or PreprocessSettings(model.visual.input_resolution)
        watch, original = self._watch, self._original
        if watch is None or original is None:
            return self._obstacle
        device = watch.tensors[0].device
        precision = "fp32" if device.type == "cuda" and _weight(model).dtype == torch.float32 else model.precision
        self.handed_out = False
        try:
            backend = make_backend(device, precision, torch.get_num_threads(), compiles=False)
            engine = Engine(_LiveWeights(model), original[0], settings, backend)
            engine.prepare(torch.float32 if self.name == "image" else None)
        except (ClipError, RuntimeError, MemoryError) as exc:  # RuntimeError is also what OpenVINO raises
            cause = " ".join(f"{type(exc).__name__}: {exc}".split())[:MAX_REASON]
            self._obstacle = f"the lean graph could not be made ({cause})"
            _log.warning("model.encode_%s stays eager: %s", self.name, self._obstacle)
            return self._obstacle
        self.engine, self._precision, self._folded, self._changed = engine, model.precision, watch.take_digest(), None
        return None


class _LiveWeights(Mapping[str, Tensor]):
    """A model's state dict that holds no tensor: entries are looked up in the model when they are read."""

    def __init__(self, model: FastModule) -> None:
        self._model = weakref.ref(model)

    def __getitem__(self, key: str) -> Tensor:
        part: Any = self._model()
        *path, name = key.split(".")
        for step in path:
            part = part.__dict__["_modules"][step]
        value = part.__dict__["_parameters"].get(name)
        return part.__dict__["_buffers"][name] if value is None else value

    def __iter__(self) -> Iterator[str]:
        model = self._model()
        return iter(model.state_dict() if model is not None else ())

    def __len__(self) -> int:
        return sum(1 for _ in self)
