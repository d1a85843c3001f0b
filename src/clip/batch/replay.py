"""Open again what a run used: its model, its way of decoding, its entries; for verify, search and contact sheets."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from ..encoder import Encoder
from ..engine.quantize import Calibration
from ..errors import InputError, StoreError, StoreMismatchError
from ..records import ContainerPart, Failure, Item, Member, Row, Shard
from ..sources.remote.client import is_remote
from ..sources.source import Source
from ..store.manifest import CALIBRATION, read_calibration
from ..weights.locate import locate_here
from .decode import Decoding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..jobs.options import Precision
    from ..network.records import PreprocessSettings
    from ..store.reader import Store


class HasRow(Protocol):
    """What is made of an entry."""

    @property
    def row(self) -> Row:
        """What is stored of it beside its vector."""
        ...


Outcome = TypeVar("Outcome", bound=HasRow)


class NotAsked(Failure):
    """An image on a server that only the output names, so that nobody asks for it."""


def load_run_encoder(store: Store, model: str | None = None, device: str = "auto") -> Encoder:
    """Load the model of a run, or `model` if that has its weights.

    The name in the manifest, which anybody may have written, has nothing fetched but a released model, whose hash is
    known.

    Raises:  what Encoder raises; WeightsMissingError for a name that would have to be fetched; StoreMismatchError for
             other weights; StoreError where the pixels are gone that they were quantised by.
    """
    manifest = store.manifest
    untrained, precision = manifest.untrained, cast("Precision", manifest.precision)
    encoder = Encoder(
        model or (manifest.model if untrained is not None else locate_here(manifest.model)),
        device=device,
        untrained=untrained,
        precision=precision,
        decode=manifest.decode.pixels,
        architecture=manifest.stated_architecture,
    )
    if encoder.weights_sha256 != manifest.weights_sha256:
        found = f"the weights of {encoder.model_name} have sha256 {encoder.weights_sha256}"
        raise StoreMismatchError(store.path, found, str(manifest.weights_sha256), "Pass the run's weights as `model`.")
    own = json.loads(json.dumps(encoder.architecture | asdict(encoder.settings)))
    for name, value in (manifest.architecture | manifest.preprocess_settings).items():
        if own.get(name) != value:  # the configuration beside the weights is another one than during the run
            found = f"{name} of {encoder.model_name} is {own.get(name)}"
            raise StoreMismatchError(store.path, found, str(value), "Put back the configuration of the weights.")
    if untrained is not None and encoder.model_name != manifest.model:  # no file tells them apart
        found = f"{encoder.model_name} is another model"
        raise StoreMismatchError(store.path, found, manifest.model, "Leave `model` out.")
    if manifest.calibration is not None:
        pixels = read_calibration(store.path)
        if pixels is None or Calibration(pixels).sha256 != manifest.calibration["sha256"]:
            found = f"holds {'no' if pixels is None else 'another'} {CALIBRATION}"
            remedy = "Run the job again with `overwrite=True`."
            raise StoreError(store.path, found, f"the one by which {precision} was quantised", remedy)
        encoder.calibrate(pixels)
    return encoder


def open_run_source(store: Store, settings: PreprocessSettings) -> Decoding:
    """Return what reads and decodes images as the run did, to the size in `settings`.

    Raises:  InputError where the folder of the images is not there any more.
    """
    manifest = store.manifest
    previews = manifest.decode.raw_previews
    if manifest.base is None and not store.base:  # of version 0.1.0, with paths as they were given
        source = Source(manifest.source, manifest.globs, manifest.columns, manifest.root, raw_previews=previews)
    else:
        if manifest.kind != "texts" and store.base and not os.path.isdir(store.base):  # noqa: PTH112  as the others, a text
            remedy = "Pass the folder where they are now as `root`."
            raise InputError(store.base, "is not there", f"the images of {store.path}", remedy)
        source = Source((), manifest.globs, manifest.columns, manifest.root, store.base, raw_previews=previews)
    return Decoding(source, settings, manifest.limits, manifest.decode)


def replay_entries(
    shard: Shard,
    wanted: set[str],
    decoding: Decoding,
    prepare: Callable[[Item | Member], Sequence[Outcome | Failure]],
    *,
    fetch: bool,
) -> Iterator[Outcome | Failure]:
    """Read and prepare the entries of these ids again; yield the outcomes, a failure for an id that is gone.

    Without `fetch` servers are not asked: the outcomes of what is there are `NotAsked`.
    """
    if not shard.entries:
        return
    first = shard.entries[0]
    if isinstance(first, ContainerPart) and is_remote(first.path) and not fetch:
        yield from (_refuse(Item(own_id, first.path, 0)) for own_id in sorted(wanted))
        return
    entries = (
        decoding.source.members(first, decoding.limits.max_bytes, Counter())
        if isinstance(first, ContainerPart)
        else shard.entries
    )
    missing = set(wanted)
    files = wanted | {own_id.rpartition("#")[0] for own_id in wanted}
    for entry in entries:
        if not missing:
            return  # the rest need not be read
        if entry.id not in files or isinstance(entry, ContainerPart):
            continue
        if isinstance(entry, Item) and is_remote(entry.path) and not fetch:
            here = {own_id for own_id in missing if entry.id in (own_id, own_id.rpartition("#")[0])}
            yield from (_refuse(entry._replace(id=own_id)) for own_id in sorted(here))
            missing -= here
            continue
        for outcome in [entry] if isinstance(entry, Failure) else prepare(entry):
            own_id = outcome.id if isinstance(outcome, Failure) else outcome.row.id
            if own_id in missing:
                missing.discard(own_id)
                yield outcome
    for own_id in sorted(missing):
        yield Failure.of(Item(own_id, "", 0), "read", InputError(own_id, "is not there any more"))


def _refuse(item: Item) -> Failure:
    reason = InputError(item.path, "is on a server", remedy="Pass `fetch=True` to ask it.")
    return NotAsked.of(item, "read", reason)
