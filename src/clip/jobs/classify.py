"""The job of `clip.classify`, its rows and its report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError
from .fields import documented
from .options import list_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

OTHER = "other"  # the label of an image whose labels are all improbable
FOLDER_NAMES = "folder-names"  # as `truth`: the name of the folder that an image is in
TEMPLATE = "a photo of a {}"


@documented
@dataclass(frozen=True, kw_only=True)
class ClassifyJob:
    """Which images to classify, and into which labels."""

    source: str | Path | Sequence[str | Path]
    """One or several folders that `clip.embed` wrote, or images in any form that it takes."""
    labels: str | Path | tuple[str, ...]
    """A file with one label per line, or labels separated by commas."""
    template: tuple[str, ...] = ()
    """Sentence with {} for the label; several are averaged. Default: "a photo of a {}"."""
    templates: str | None = None
    """A set of templates instead: "openai7", or a file with one per line."""
    k: int = 5
    """Number of labels to return per image, the most probable first."""
    other: float | None = None
    """Probability below which the most probable label does not count, and the image is "other"."""
    truth: str | None = None
    """Column with the correct label, or "folder-names"."""
    model: str | None = None
    """A model's name or path; default: for an output the run's weights, for images ViT-B/32."""
    untrained: int | None = None
    """For images: draw the weights at random from this seed."""
    device: str = "auto"
    """Device of the model."""
    architecture: str | None = None
    """For images: the network of weights that do not show theirs, as of `ModelOptions`."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError("`k`", f"found {self.k}", "at least 1 label", "Pass a larger number.")
        if self.other is not None and not 0 <= self.other <= 1:
            raise InputError("`other`", f"found {self.other}", "a probability from 0 to 1", "Pass 0.5, say.")
        if self.template and self.templates:
            raise InputError("`templates`", "found template too", "one of the two", "Leave out `template`.")
        if not self.sources:
            raise InputError("`source`", "found none", "outputs or images", "Pass them.")

    @property
    def sources(self) -> tuple[str, ...]:
        """The outputs or inputs in `source`, as texts."""
        return list_inputs(self.source)


@documented
@dataclass(frozen=True)
class Classified:
    """The labels of an image, or the reason why it has none."""

    id: str
    """The row's id."""
    path: str
    """Where the image is, by the output's base."""
    top: tuple[tuple[str, float], ...] = ()
    """Labels and their probabilities, the most probable first."""
    label: str | None = None
    """The predicted label: the most probable one, or "other" where its probability is below the job's bound."""
    truth: str | None = None
    """The correct label, where it was asked for and is known."""
    stage: str | None = None
    """Of a failure: where it failed, as in failures/."""
    error: str | None = None
    """Of a failure: the exception's type."""
    message: str | None = None
    """Of a failure: the exception's message."""


@documented
@dataclass(frozen=True)
class ClassifyReport:
    """The result of classifying. read = classified + failed."""

    read: int
    """Images, failures included."""
    classified: int
    """Images with labels."""
    failed: int
    """Failures."""
    labels: tuple[str, ...]
    """The labels, in the order given."""
    rows: tuple[Classified, ...]
    """One per image; empty where `each` was called with them."""
    evaluated: int = 0
    """Images whose truth is one of the labels."""
    correct: int = 0
    """Of these, images whose predicted label is the truth."""
    unknown: tuple[str, ...] = ()
    """Some truths that are not among the labels."""
    counts: tuple[tuple[str, int], ...] = ()
    """Predicted labels, and how many images have each, in the order of the labels."""
    confusion: tuple[tuple[str, str, int], ...] = ()
    """Truth, predicted label, and how many images have both."""

    @property
    def accuracy(self) -> float | None:
        """Part of the evaluated images that is correct, 0..1; None where none were evaluated."""
        return self.correct / self.evaluated if self.evaluated else None
