"""classify(job): images and labels -> probabilities, as in the CLIP paper.

A label's vector is the mean of the unit vectors of its texts, one per template, at unit length. An image's
probabilities are the softmax of its cosines to the labels times the model's logit scale; of a SigLIP each label has a
probability of its own, the sigmoid of that product and the model's bias.
Source:  Radford et al. 2021, 3.1.4; openai/CLIP@d05afc4 notebooks/Prompt_Engineering_for_ImageNet.ipynb.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from contextlib import suppress
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from ..batch.embed import embed
from ..batch.encoders import load_encoder
from ..batch.replay import load_run_encoder
from ..encoder import Encoder
from ..errors import InputError, StoreError, StoreUnreachableError
from ..jobs.classify import FOLDER_NAMES, OTHER, Classified, ClassifyJob, ClassifyReport
from ..jobs.embed import EmbedJob, Progress
from ..jobs.options import ModelOptions
from ..object_paths import open_place
from ..store.manifest import MANIFEST, read_manifest
from ..store.merge import check_alike
from ..store.parts import EMBEDDINGS, FAILURES, stack_vectors
from ..store.reader import Store
from ..vectors import unit_vectors
from .prompts import PLACEHOLDER, read_labels, read_templates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


BATCH_TEXTS = 2_048  # encoded at once
BATCH_CELLS = 2**22  # probabilities computed at once, in float64: 32 MB
MAX_UNKNOWN = 5  # truths outside the labels that a report names


def classify(
    job: ClassifyJob,
    each: Callable[[Classified], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> ClassifyReport:
    """Predict the label of each image, and count the correct ones where the truth is known.

    `source` is one or several outputs of `clip embed`, whose vectors are used, or anything that `clip embed` takes,
    which is embedded into a temporary folder first and reported to `progress`. `each` is called with the rows one by
    one; by default they are in the report. Failures are rows too: read = classified + failed.

    Raises:  InputError for labels, templates, a truth or images that cannot be used, and for outputs beside images;
             TextTooLongError; as Encoder; StoreError for an output that is empty or damaged, or whose weights are not
             on this machine; StoreMismatchError for outputs of other weights, precision or preprocessing.
    """
    labels = read_labels(job.labels)
    templates = read_templates(job.template, job.templates)
    stores = _open_outputs(job.sources)
    if stores:
        store = stores[0]
        if job.untrained is not None:
            found = f"found {job.untrained}, but {store.path} has a model"
            raise InputError("`untrained`", found, remedy="Leave it out.")
        if job.architecture is not None:
            found = f"found {job.architecture}, but {store.path} has a model"
            raise InputError("`architecture`", found, remedy="Leave it out.")
        classifier = Classifier(load_run_encoder(store, job.model, job.device), labels, templates)
        return _classify_stores(job, stores, classifier, each)
    model = ModelOptions(job.model or ModelOptions.name, job.untrained, job.device, architecture=job.architecture)
    classifier = Classifier(load_encoder(model), labels, templates)
    # By the run of `embed`, for its inputs, its failure rows and its checked counts: no second pipeline.
    with tempfile.TemporaryDirectory(prefix="clip-classify-") as folder:
        output = Path(folder) / "out"
        embed_job = EmbedJob(source=job.source, output=output, model=model, duplicate_ids="keep")
        embed(embed_job, progress)
        return _classify_stores(job, [Store(output)], classifier, each)


def _open_outputs(sources: Sequence[str]) -> list[Store]:
    """Open the outputs that all sources are; return none where they are images."""
    are_outputs = [_is_output(name) for name in sources]
    if any(are_outputs) and not all(are_outputs):
        output, images = sources[are_outputs.index(True)], sources[are_outputs.index(False)]
        remedy = "Classify them one after another."
        raise InputError("`source`", f"{output} is an output, {images} is none", "outputs or images", remedy)
    stores = [Store(name) for name in sources] if any(are_outputs) else []
    for store in stores[1:]:
        check_alike(stores[0], store)
    return stores


def _is_output(source: str) -> bool:
    """Whether a source is an output of `clip embed`. One that gives no answer as an output may give one as an input."""
    with suppress(StoreUnreachableError):
        return read_manifest(open_place(source) / MANIFEST) is not None
    return False


class Classifier:
    """Labels as vectors, to which images are compared."""

    def __init__(self, encoder: Encoder, labels: tuple[str, ...], templates: tuple[str, ...]) -> None:
        self.labels = labels
        self._logit_scale, self._logit_bias = encoder.logit_scale, encoder.logit_bias
        group = max(1, BATCH_TEXTS // len(templates))
        vectors: list[np.ndarray] = []
        for start in range(0, len(labels), group):
            batch = labels[start : start + group]
            texts = [template.replace(PLACEHOLDER, label) for label in batch for template in templates]
            features = encoder.encode_text(texts).float().cpu().numpy()
            units = unit_vectors(features.astype(np.float64)).reshape(
                len(batch), len(templates), -1
            )  # (l, templates, D)
            vectors.append(unit_vectors(units.mean(axis=1)))  # (l, D)
        self._vectors = np.concatenate(vectors)  # (L, D)

    def predict(self, vectors: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the probabilities of images for each label, in batches. Shapes: float (N, D) -> float64 (n, L)."""
        rows = max(1, BATCH_CELLS // len(self.labels))
        for start in range(0, len(vectors), rows):
            images = unit_vectors(vectors[start : start + rows].astype(np.float64))  # (n, D)
            logits = self._logit_scale * (images @ self._vectors.T)  # (n, L)
            if self._logit_bias is not None:
                yield 1 / (1 + np.exp(-(logits + self._logit_bias)))
                continue
            raised = np.exp(logits - logits.max(axis=1, keepdims=True))
            yield raised / raised.sum(axis=1, keepdims=True)


def _classify_stores(
    job: ClassifyJob, stores: Sequence[Store], classifier: Classifier, each: Callable[[Classified], None] | None
) -> ClassifyReport:
    for store in stores:
        store.check_complete()
    truth = _Truth(job.truth, stores, classifier.labels)
    rows: list[Classified] = []
    counts: Counter[str] = Counter()
    predicted: Counter[str] = Counter()
    for row in chain.from_iterable(_classify_rows(job, store, classifier, truth) for store in stores):
        counts["failed" if row.error else "classified"] += 1
        predicted.update([] if row.label is None else [row.label])
        truth.evaluate(row)
        (each or rows.append)(row)
    if not counts:
        raise StoreError(stores[0].path, "holds no vectors", remedy="Embed images into it first.")
    classified, failed = counts["classified"], counts["failed"]
    confusion = tuple((true, label, count) for (true, label), count in sorted(truth.confusion.items()))
    names = dict.fromkeys((*classifier.labels, OTHER))
    return ClassifyReport(
        read=classified + failed,
        classified=classified,
        failed=failed,
        labels=classifier.labels,
        rows=tuple(rows),
        evaluated=sum(truth.confusion.values()),
        correct=sum(count for true, label, count in confusion if true == label),
        unknown=tuple(truth.unknown),
        counts=tuple((label, predicted[label]) for label in names if predicted[label]),
        confusion=confusion,
    )


def _classify_rows(job: ClassifyJob, store: Store, classifier: Classifier, truth: _Truth) -> Iterator[Classified]:
    for path in store.parts():
        table = store.files.read(path, ["id", "path", "embedding", *truth.columns])
        ids, paths = (table.column(name).to_pylist() for name in ("id", "path"))
        truths = truth.read(ids, [table.column(name).to_pylist() for name in truth.columns])
        place = 0
        for block in classifier.predict(stack_vectors(table, store.schema)):
            best = np.argsort(-block, axis=1, kind="stable")[:, : job.k]  # ties in the labels' order
            for row, order in zip(block, best.tolist(), strict=True):
                top = tuple((classifier.labels[label], float(row[label])) for label in order)
                label = OTHER if job.other is not None and top[0][1] < job.other else top[0][0]
                yield Classified(ids[place], store.locate(paths[place]), top, label, truths[place])
                place += 1
        for failure in store.files.read_or_empty(store.path / FAILURES / path.name).to_pylist():
            yield Classified(**failure | {"path": store.locate(failure["path"])})


class _Truth:
    """The correct labels of images, and how often each was predicted."""

    def __init__(self, column: str | None, stores: Sequence[Store], labels: tuple[str, ...]) -> None:
        """Take the truth from a column, or from folders; None for none. Raises: InputError for a missing column."""
        self.confusion: Counter[tuple[str, str]] = Counter()
        self.unknown: list[str] = []
        self.columns = [] if column in (None, FOLDER_NAMES) else [column]
        self._column = column
        self._labels = frozenset(labels)
        for store, path in ((one, path) for one in stores for path in one.parts()[:1]):
            names = [name for name in store.files.read_schema(path).names if name != "embedding"]
            if self.columns and column not in names:
                found = f"{store.path / EMBEDDINGS} has no column {column!r}"
                raise InputError("`truth`", found, f"one of {names}, or {FOLDER_NAMES}", "Pass one of them.")

    def read(self, ids: list[str], columns: list[list[object]]) -> list[str | None]:
        """Return the truth of each row, by its id or by the values of `columns`; None where it is not known."""
        if columns:
            return [None if value is None else str(value) for value in columns[0]]
        return [self._read_folder(own_id) for own_id in ids] if self._column else [None] * len(ids)

    def _read_folder(self, own_id: str) -> str | None:
        """Return the name of the folder that an image is in, inside an archive too."""
        name = PurePosixPath(own_id).parent.name
        return (name if name in self._labels else name.rpartition("!")[2]) or None

    def evaluate(self, row: Classified) -> None:
        """Count a row's prediction, or note a truth that is not among the labels."""
        if row.truth in self._labels and row.label is not None:
            self.confusion[row.truth or "", row.label] += 1
        elif row.truth is not None and row.truth not in self.unknown and len(self.unknown) < MAX_UNKNOWN:
            self.unknown.append(row.truth)
