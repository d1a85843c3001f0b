"""What a run had, found again: its model, its way of decoding, its entries. Knows nothing about what that is for."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, TypeVar

from ..encoder import Encoder
from ..engine.quantize import Calibration
from ..errors import StoreError, StoreMismatchError
from ..jobs.options import DecodeOptions, Limits
from ..records import Columns, ContainerPart, Failure, Pixels, Tokens
from ..sources.source import Source
from ..store.manifest import CALIBRATION, read_calibration
from .decode import Decoding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..network.records import PreprocessSettings
    from ..records import Item, Member, Shard
    from ..store.reader import Store

Outcome = TypeVar("Outcome", Pixels, Pixels | Tokens)


def encoder_of(store: Store, model: str | None = None, device: str = "auto") -> Encoder:
    """The model that the run had, or `model` if that has its weights.

    Raises:  what Encoder does; StoreMismatchError where the weights found are others; StoreError where the pixels are
             gone by which they were quantised.
    """
    manifest = store.manifest
    kind, _, seed = manifest["weights_source"].partition("untrained:")
    untrained = int(seed) if seed and not kind else None
    words = {"precision": manifest["precision"], "decode": manifest["decode"]}
    encoder = Encoder(model or manifest["model"], device=device, untrained=untrained, **words)
    if encoder.weights_sha256 != manifest["weights_sha256"]:
        raise StoreMismatchError(
            f"{store.path}: weights of {encoder.model_name} have sha256 {encoder.weights_sha256}, expected "
            f"{manifest['weights_sha256']}. Pass the run's weights with -m."
        )
    if untrained is not None and encoder.model_name != manifest["model"]:  # no file tells them apart
        raise StoreMismatchError(
            f"{store.path}: {encoder.model_name} is another model, expected {manifest['model']}. Leave -m out."
        )
    calibration: dict[str, Any] | None = manifest.get("calibration")
    if calibration is not None:
        pixels = read_calibration(store.path)
        if pixels is None or Calibration(pixels).sha256 != calibration["sha256"]:
            found = "another" if pixels is not None else "no"
            raise StoreError(
                store.path,
                f"holds {found} {CALIBRATION}",
                "that by which int8 was quantised",
                "Run the job again with `overwrite=True`.",
            )
        encoder.calibrate(pixels)
    return encoder


def decoding_of(store: Store, settings: PreprocessSettings) -> Decoding:
    """How the run read and decoded its images, to what `settings` ask for.

    Raises:  InputError where the source is not there any more.
    """
    manifest = store.manifest
    keep, types = zip(*manifest["keep"], strict=True) if manifest["keep"] else ((), ())
    column, id_column, kind, text = (manifest[name] for name in ("column", "id_column", "kind", "text_column"))
    columns = Columns(column, id_column, kind, text, keep, types)
    source = Source(tuple(manifest["source"]), tuple(manifest["globs"]), columns, manifest["root"])
    limits, policies = Limits(**manifest["guards"]), DecodeOptions(**manifest["policies"])
    return Decoding(source, settings, limits, policies, how=manifest["decode"])


def entries_again(
    shard: Shard,
    wanted: set[str],
    decoding: Decoding,
    prepare: Callable[[Item | Member], Sequence[Outcome | Failure]],
) -> Iterator[Outcome | Failure]:
    """What becomes of the entries of these ids when they are read and prepared again."""
    pack = shard.entries[0]
    entries = (
        decoding.source.members(pack, decoding.limits.max_bytes, Counter())
        if isinstance(pack, ContainerPart)
        else shard.entries
    )
    missing = set(wanted)
    files = wanted | {own_id.rpartition("#")[0] for own_id in wanted}
    for entry in entries:
        if not missing:
            return  # what follows need not be read
        if entry.id not in files or isinstance(entry, ContainerPart):
            continue
        for outcome in [entry] if isinstance(entry, Failure) else prepare(entry):
            found = outcome.id if isinstance(outcome, Failure) else outcome.row.id
            if found in missing:
                missing.discard(found)
                yield outcome
    for own_id in sorted(missing):
        yield Failure(own_id, "", "read", "InputError", "it is not there any more")
