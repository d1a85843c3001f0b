"""The manifest of an output: everything its vectors depend on, its input, and its counts.

The JSON keys are those of version 0.1.0, some of which are older words than the fields: `policies` and `decode` are
DecodeOptions, `guards` are Limits, `keep`, `column`, `id_column`, `text_column`, `delimiter` and `quoting` are Columns.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pyarrow as pa

from ..atomic_files import atomic_write, open_regular, read_regular, translate_os_errors
from ..errors import StoreError
from ..jobs.options import Columns, DecodeOptions, DuplicateIds, Limits, LongText, Precision, VectorDtype
from ..object_paths import ObjectPath
from .checksums import dump_json, load_json
from .field_types import check_fields

if TYPE_CHECKING:
    from ..records import Kind

MANIFEST = "manifest.json"
INDEX = "_index"
# The pixels that a run was quantised by. A resumed run needs them, as its input may have changed since, and vectors of
# two quantisations do not mix; 256 images are 39 MB.
CALIBRATION = "_calibration.npy"
UNTRAINED = "untrained:"  # before the seed of weights that were drawn at random
KINDS: dict[Kind, str] = {"images": "pictures", "texts": "texts", "pairs": "pairs"}  # as version 0.1.0 wrote them
# The JSON keys on which vectors, ids and shard borders depend: a run is resumed only where all of them agree.
COMPARED_KEYS = (
    *("weights_sha256", "architecture", "preprocess", "preprocess_settings", "precision", "computed_in", "calibration"),
    *("decode", "policies", "guards", "normalised", "dtype", "dim", "hashes", "kind", "long_text", "keep"),
    *("delimiter", "quoting", "shard_size"),
)
# What else decides which entries an input gives: where the listing is another one, and one of these is, that is why.
READING_KEYS = ("column", "id_column", "text_column", "globs", "limit")
READING_DEFAULTS: dict[str, Any] = {"delimiter": "", "quoting": "auto"}  # as which these keys are left out
# Of something that is no file of ours: nothing there, a file for a folder, a pipe, a link to itself, a file too large.
NO_MANIFEST = (errno.ENOENT, errno.ENOTDIR, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.EFBIG, errno.ENAMETOOLONG)
COUNTED = ("read", "written", "failed")  # in `counts`
MAX_DIM = 2**20  # of a vector
MAX_CALIBRATION_BYTES = 2**31  # 256 images of 1,600 px
CALIBRATION_HEADER = re.compile(  # as numpy.save writes it; its reader parses whatever stands there
    rb"\x93NUMPY\x01\x00v\x00(?=[^\n]{117}\n)\{'descr': '\|u1', 'fortran_order': False, "
    rb"'shape': \((\d{1,9}), (\d{1,5}), (\d{1,5}), (3)\), \} *\n"
)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of OUT/manifest.json."""

    model: str = ""
    weights_sha256: str | None = None
    weights_source: str = ""  # a path, or "untrained:SEED"
    architecture: dict[str, Any] = field(default_factory=dict[str, Any])
    stated_architecture: str | None = None  # the name or file that said what the weights leave open
    preprocess: str = ""
    preprocess_settings: dict[str, Any] = field(default_factory=dict[str, Any])
    precision: str = "reference"
    computed_in: str = ""
    calibration: dict[str, Any] | None = None  # number and sha256 of the images the run was quantised by
    tuned: dict[str, Any] | None = None  # what `min_cosine` measured
    engine: str = ""
    decode: DecodeOptions = DecodeOptions()  # noqa: RUF009  frozen, as are the next two
    limits: Limits = Limits()  # noqa: RUF009
    columns: Columns = Columns()  # noqa: RUF009
    normalised: bool = True
    dtype: str = "float32"
    hashes: bool = False
    long_text: str | None = None  # None without texts
    dim: int
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict[str, str])
    source: tuple[str, ...] = ()
    globs: tuple[str, ...] = ()
    root: str = ""  # where relative paths in lists start, itself relative to `base`
    base: str | None = None  # where ids and paths start, an absolute path; None in outputs of version 0.1.0
    base_from_output: str = ""  # the same from the output, as both may move together
    duplicate_ids: str = "error"
    limit: int | None = None
    shard_size: int = 10_000
    input_fingerprint: str | None = None  # None until the input is listed
    counts: dict[str, Any] | None = None  # None until the run is over
    warnings: bool = True  # whether rows have a column for them; those of version 0.1.0 have none
    text_warnings: bool = False  # likewise for rows of texts, where a text that is too long is cut
    parts: int = 0  # how many processes shared the run when one was last begun; 0 where it was one alone
    run: str = ""  # goes into the checksums of the parts; empty where they carry none, as those of version 0.1.0

    @property
    def kind(self) -> Kind:
        """Whether entries are images, texts or pairs."""
        return self.columns.kind

    @property
    def untrained(self) -> int | None:
        """The seed of weights that were drawn at random, else None."""
        seed = self.weights_source.removeprefix(UNTRAINED)
        return int(seed) if seed != self.weights_source else None

    def to_json(self) -> dict[str, Any]:
        """Return plain values under the JSON keys, in the order in which they are written."""
        policies, columns = asdict(self.decode), self.columns
        if not policies["raw_previews"]:  # unknown to version 0.1.0, and off
            del policies["raw_previews"]
        content = {
            "model": self.model,
            "weights_sha256": self.weights_sha256,
            "weights_source": self.weights_source,
            "architecture": self.architecture,
            "preprocess": self.preprocess,
            "preprocess_settings": self.preprocess_settings,
            "precision": self.precision,
            "computed_in": self.computed_in,
            "calibration": self.calibration,
            "tuned": self.tuned,
            "engine": self.engine,
            "decode": policies.pop("pixels"),
            "kind": KINDS[self.kind],
            "policies": policies,
            "guards": asdict(self.limits),
            "normalised": self.normalised,
            "dtype": self.dtype,
            "hashes": self.hashes,
            "long_text": self.long_text,
            "keep": columns.kept,  # pairs, as the order counts
            "dim": self.dim,
            "device": self.device,
            "versions": self.versions,
            "source": self.source,
            "globs": self.globs,
            "column": columns.entry,
            "id_column": columns.id,
            "text_column": columns.text,
            "root": self.root,
            "duplicate_ids": self.duplicate_ids,
            "limit": self.limit,
            "shard_size": self.shard_size,
            "input_fingerprint": self.input_fingerprint,
            "counts": self.counts,
        }
        # unknown to version 0.1.0
        names = ("stated_architecture", "warnings", "text_warnings", "run", "base_from_output", "parts")
        rare: dict[str, Any] = {name: getattr(self, name) for name in names}
        content |= {key: value for key, value in rare.items() if value}
        content |= {} if self.base is None else {"base": self.base}  # likewise
        reading = {"delimiter": columns.delimiter_character, "quoting": columns.quoting}
        content |= {key: value for key, value in reading.items() if value != READING_DEFAULTS[key]}  # likewise
        return json.loads(json.dumps(content))  # lists for tuples, as when it is read

    def find_base(self, output: Path) -> str:
        """Return the folder to which paths are relative; where it is gone, the one at its place from the output."""
        base = self.base or ""
        is_known = not self.base_from_output or isinstance(output, ObjectPath) or os.path.isdir(base)  # noqa: PTH112
        if not base or is_known:  # texts have none
            return base
        moved = os.path.normpath(os.path.join(os.path.abspath(output), self.base_from_output))  # noqa: PTH100, PTH118
        return moved if os.path.isdir(moved) else base  # noqa: PTH112

    def identify(self) -> str:
        """Return what distinguishes the parts of this run from those of another: a hash of what vectors depend on."""
        content = READING_DEFAULTS | self.to_json()
        values = [content[key] for key in (*self._own_keys, *COMPARED_KEYS)]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Manifest:
        """Return the manifest that `to_json` of this version or an earlier one wrote.

        Raises:  KeyError, TypeError or ValueError for any other object.
        """
        values: dict[str, Any] = {name: content[name] for name in cls.__dataclass_fields__ if name in content}
        keep, types = zip(*content["keep"], strict=True) if content.get("keep") else ((), ())
        entry, own_id, text = (content.get(name) for name in ("column", "id_column", "text_column"))
        reading = {name: content[name] for name in ("delimiter", "quoting") if name in content}
        values["columns"] = Columns(entry, own_id, content.get("kind") == KINDS["texts"], text, keep, types, **reading)
        values["decode"] = DecodeOptions(content.get("decode", "exact"), **content.get("policies", {}))
        values["limits"] = Limits(**content.get("guards", {}))
        values |= {name: tuple(content.get(name, ())) for name in ("source", "globs")}
        values["warnings"] = content.get("warnings", False)
        return cls(**values)

    @property
    def _own_keys(self) -> tuple[str, ...]:
        return () if self.weights_sha256 else ("weights_source",)

    def first_difference(self, other: Manifest, keys: tuple[str, ...] = COMPARED_KEYS) -> tuple[str, Any, Any] | None:
        """Return the first of some keys in which two manifests differ, and both values; None if they agree.

        Weights without a hash were drawn at random, and are compared by their seed.
        """
        mine, theirs = (READING_DEFAULTS | manifest.to_json() for manifest in (self, other))
        keys = (*self._own_keys, *keys)
        return next(((key, mine[key], theirs[key]) for key in keys if mine[key] != theirs[key]), None)


def read_manifest(path: Path) -> Manifest | None:
    """Read a manifest; return None for any other file, as web applications also have a manifest.json.

    Raises:  StoreError for one of ours that is not as it was written, or that no version of ours writes.
    """
    try:
        content, carried = load_json(path)
        if not {"dim", "dtype"} <= content.keys():
            return None
        if content.get("run") and not carried:
            raise ValueError("it carries no checksum")
        return check_manifest(Manifest.from_json(content))
    except OSError as exc:
        if exc.errno in NO_MANIFEST:
            return None
        raise StoreError(path, f"cannot be read ({exc.strerror})", "a manifest", "Check the disk.") from exc
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        if not _looks_like_ours(path):
            return None
        remedy = "Restore it from a copy, or move the output away and run the job again."
        raise StoreError(path, f"cannot be used ({exc})", "it as clip embed wrote it", remedy) from exc


def _looks_like_ours(path: Path) -> bool:
    with open_regular(path) as file:
        return any(key in file.read(2**16) for key in (b'"weights_sha256"', b'"input_fingerprint"', b'"dtype"'))


def check_manifest(manifest: Manifest) -> Manifest:
    """Return a manifest whose fields have their types and are within bounds. Raises: ValueError, TypeError."""
    for record in (manifest, manifest.decode, manifest.limits, manifest.columns):
        check_fields(record)
    words = {"dtype": VectorDtype, "precision": Precision, "duplicate_ids": DuplicateIds}
    for name, kind in (words | ({"long_text": LongText} if manifest.long_text else {})).items():
        if getattr(manifest, name) not in get_args(kind):
            raise ValueError(f"its {name} is {getattr(manifest, name)!r}")
    if type(manifest.dim) is not int or not 1 <= manifest.dim <= MAX_DIM:
        raise ValueError(f"its dim is {manifest.dim}")
    if manifest.base and not Path(manifest.base).is_absolute():  # a URL would have a server asked
        raise ValueError(f"its base is {manifest.base!r}")
    if os.path.isabs(manifest.base_from_output) or "://" in manifest.base_from_output:  # noqa: PTH117
        raise ValueError(f"its base_from_output is {manifest.base_from_output!r}")
    for _, kind in manifest.columns.kept:
        if not isinstance(pa.type_for_alias(kind), pa.DataType):
            raise TypeError(f"it keeps a column of {kind!r}")
    counts = manifest.counts
    if counts is not None and not all(type(counts.get(name)) is int and counts[name] >= 0 for name in COUNTED):
        raise ValueError(f"its counts are {counts}")
    if manifest.calibration is not None and not isinstance(manifest.calibration.get("sha256"), str):
        raise TypeError("its calibration has no sha256")
    if manifest.tuned is not None and "min_cosine" not in manifest.tuned:
        raise ValueError("its tuned has no min_cosine")
    if manifest.untrained is not None and manifest.untrained < 0:
        raise ValueError(f"its weights_source is {manifest.weights_source!r}")
    return manifest


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest into an output."""
    with atomic_write(path / MANIFEST) as file:
        file.write(dump_json(manifest.to_json()))


def read_calibration(path: Path) -> np.ndarray | None:
    """Read the pixels that a run was quantised by; return None where the file is missing or damaged.

    Shapes:  uint8 (N, R, R, 3).
    """
    try:
        data = read_regular(path / CALIBRATION, MAX_CALIBRATION_BYTES)
    except OSError:
        return None
    header = CALIBRATION_HEADER.match(data)
    shape = tuple(map(int, header.groups())) if header else ()
    if header is None or len(data) - header.end() != math.prod(shape):
        return None
    return np.frombuffer(data, np.uint8, offset=header.end()).reshape(shape).copy()


def write_calibration(path: Path, pixels: np.ndarray) -> None:
    """Write the pixels that a run is quantised by into its output. Raises: StoreError if that fails."""
    with translate_os_errors(path / CALIBRATION), atomic_write(path / CALIBRATION) as file:
        np.save(file, pixels)
