"""classify(job): images and labels -> probabilities, as in the CLIP paper. Knows nothing about the command line.

A label's vector: its texts by all templates, each of unit length, averaged, and made of unit length again. An image's
probabilities: the softmax of its cosines to the labels, times the model's logit scale.
Source:  Radford et al. 2021, 3.1.4; openai/CLIP@d05afc4 notebooks/Prompt_Engineering_for_ImageNet.ipynb.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from ..batch.embed import embed
from ..batch.replay import load_run_encoder
from ..encoder import Encoder
from ..errors import InputError, StoreError
from ..jobs.classify import FOLDER_NAMES, Classified, ClassifyJob, ClassifyReport
from ..jobs.embed import EmbedJob
from ..jobs.options import ModelOptions
from ..store.manifest import MANIFEST, read_manifest
from ..store.parts import EMBEDDINGS, FAILURE_SCHEMA, FAILURES, read_part, read_part_or_empty, read_schema
from ..store.reader import Store, stack_vectors
from .prompts import PLACE, read_labels, read_templates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..jobs.embed import Progress

TEXTS_AT_A_TIME = 2_048
CELLS_AT_A_TIME = 2**22  # probabilities in float64: 32 MB
MAX_UNKNOWN = 5  # truths to name that are no label


def classify(
    job: ClassifyJob,
    each: Callable[[Classified], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> ClassifyReport:
    """What each image is taken for; and, where the truth is given, how often that is right.

    `source` is an output of `clip embed`, whose vectors are used, or anything that `clip embed` takes, which is
    embedded into a temporary folder first; `progress` is told of that. `each` takes the rows one by one; without it
    they are in the report. What could not be embedded is a row too: read = classified + failed.

    Raises:  InputError for labels, templates, a truth or images that cannot be used; TextTooLongError; what Encoder
             does; StoreError for an output that is empty or damaged, or whose weights are not at hand.
    """
    labels = read_labels(job.labels)
    templates = read_templates(job.template, job.templates)
    if read_manifest(Path(job.source) / MANIFEST) is not None:
        store = Store(job.source)
        if job.untrained is not None:
            raise InputError(
                "`untrained`",
                f"found {job.untrained} for {store.path}, which a model wrote",
                "that one",
                "Drop it.",
            )
        classifier = _Classifier(load_run_encoder(store, job.model, job.device), labels, templates)
        return _classified(job, store, classifier, each)
    model = job.model or ModelOptions.name
    classifier = _Classifier(Encoder(model, device=job.device, untrained=job.untrained), labels, templates)
    with tempfile.TemporaryDirectory(prefix="clip-classify-") as folder:
        output = Path(folder) / "out"
        asked = EmbedJob(
            source=job.source,
            output=output,
            model=ModelOptions(model, job.untrained, job.device),
            duplicate_ids="keep",
        )
        embed(asked, progress)
        return _classified(job, Store(output), classifier, each)


class _Classifier:
    """Labels, as vectors."""

    def __init__(self, encoder: Encoder, labels: tuple[str, ...], templates: tuple[str, ...]) -> None:
        self.labels = labels
        self._logit_scale = encoder.logit_scale
        group = max(1, TEXTS_AT_A_TIME // len(templates))
        found: list[np.ndarray] = []
        for start in range(0, len(labels), group):
            some = labels[start : start + group]
            texts = [template.replace(PLACE, label) for label in some for template in templates]
            features = encoder.encode_text(texts).float().cpu().numpy()
            units = _unit(features).reshape(len(some), len(templates), -1)
            found.append(_unit(units.mean(axis=1)))
        self._vectors = np.concatenate(found)  # (L, D)

    def probabilities(self, vectors: np.ndarray) -> Iterator[np.ndarray]:
        """Of each image for each label, some images at a time. Shapes: float (N, D) -> float64 (n, L)."""
        rows = max(1, CELLS_AT_A_TIME // len(self.labels))
        for start in range(0, len(vectors), rows):
            logits = self._logit_scale * (_unit(vectors[start : start + rows]) @ self._vectors.T)
            raised = np.exp(logits - logits.max(axis=1, keepdims=True))
            yield raised / raised.sum(axis=1, keepdims=True)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Shapes: float (N, D) or (T, N, D) -> float64, the last axis of unit length."""
    wide = vectors.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=-1, keepdims=True)


def _classified(
    job: ClassifyJob, store: Store, classifier: _Classifier, each: Callable[[Classified], None] | None
) -> ClassifyReport:
    truth = _Truth(job.truth, store, classifier.labels)
    kept: list[Classified] = []
    counts: Counter[str] = Counter()
    for row in _rows(job, store, classifier, truth):
        counts["failed" if row.error else "classified"] += 1
        truth.judge(row)
        (each or kept.append)(row)
    if not counts:
        raise StoreError(
            store.path,
            "holds no vectors",
            "some to classify",
            "Embed images into it.",
        )
    classified, failed = counts["classified"], counts["failed"]
    confusion = tuple((right, taken, count) for (right, taken), count in sorted(truth.confusion.items()))
    return ClassifyReport(
        read=classified + failed,
        classified=classified,
        failed=failed,
        labels=classifier.labels,
        rows=tuple(kept),
        evaluated=sum(truth.confusion.values()),
        correct=sum(count for right, taken, count in confusion if right == taken),
        unknown=tuple(truth.unknown),
        confusion=confusion,
    )


def _rows(job: ClassifyJob, store: Store, classifier: _Classifier, truth: _Truth) -> Iterator[Classified]:
    for path in store.parts():
        table = read_part(path, ["id", "path", "embedding", *truth.columns])
        ids, paths = (table.column(name).to_pylist() for name in ("id", "path"))
        truths = truth.of(ids, [table.column(name).to_pylist() for name in truth.columns])
        place = 0
        for block in classifier.probabilities(stack_vectors(table, store.schema)):
            best = np.argsort(-block, axis=1, kind="stable")[:, : job.k]  # equal ones in the labels' order
            for row, order in zip(block, best.tolist(), strict=True):
                top = tuple((classifier.labels[label], float(row[label])) for label in order)
                yield Classified(ids[place], paths[place], top, truths[place])
                place += 1
        for failed in read_part_or_empty(store.path / FAILURES / path.name, FAILURE_SCHEMA).to_pylist():
            yield Classified(**failed)


class _Truth:
    """What images are, and how often they were taken for it."""

    def __init__(self, asked: str | None, store: Store, labels: tuple[str, ...]) -> None:
        """Raises: InputError where there is no such column."""
        self.confusion: Counter[tuple[str, str]] = Counter()
        self.unknown: list[str] = []
        self.columns = [] if asked in (None, FOLDER_NAMES) else [asked]
        self._asked = asked
        self._labels = frozenset(labels)
        for path in store.parts()[:1]:
            there = [name for name in read_schema(path).names if name != "embedding"]
            if self.columns and asked not in there:
                raise InputError(
                    f"truth {asked!r}",
                    f"no such column in {store.path / EMBEDDINGS}",
                    f"one of {there}, or {FOLDER_NAMES}",
                    "Pass one.",
                )

    def of(self, ids: list[str], columns: list[list[object]]) -> list[str | None]:
        """What is told of each row."""
        if columns:
            return [None if value is None else str(value) for value in columns[0]]
        return [self._folder(own_id) for own_id in ids] if self._asked else [None] * len(ids)

    def _folder(self, own_id: str) -> str | None:
        """The name of the folder that an image lies in, below its archive too."""
        name = PurePosixPath(own_id).parent.name
        return (name if name in self._labels else name.rpartition("!")[2]) or None

    def judge(self, row: Classified) -> None:
        """Take note of how a row was classified."""
        if row.truth in self._labels and row.top:
            self.confusion[row.truth or "", row.top[0][0]] += 1
        elif row.truth is not None and row.truth not in self.unknown and len(self.unknown) < MAX_UNKNOWN:
            self.unknown.append(row.truth)
