"""What a user can ask of `clip classify`, and what comes back. Knows nothing about how it is carried out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

FOLDER_NAMES = "folder-names"  # as the truth: the folder that an image lies in
TEMPLATE = "a photo of a {}"


@dataclass(frozen=True, kw_only=True)
class ClassifyJob:
    """What `clip classify` is asked for."""

    source: str | Path  # what clip embed wrote, or images in any form that it takes
    labels: str | Path | tuple[str, ...]  # a file of them, a line each, or some with commas between
    template: tuple[str, ...] = ()  # texts with {} for the label, averaged; "a photo of a {}" without
    templates: str | None = None  # a set of them instead: "openai7", or a file, a line each
    k: int = 5  # labels to tell of each image, the most probable first
    truth: str | None = None  # a column that has the right label, or "folder-names"
    model: str | None = None  # of OUT, the run's weights, found by the manifest without; of images, ViT-B/32 without
    untrained: int | None = None  # of images: draw the weights at random from this seed
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(
                "`k`",
                f"found {self.k}",
                "at least 1 label",
                "Pass a larger number.",
            )
        if self.template and self.templates:
            raise InputError(
                "`templates`",
                "found single ones and a set",
                "one of the two",
                "Pass one.",
            )


@dataclass(frozen=True)
class Classified:
    """What an image was taken for, or why it could not be looked at."""

    id: str
    path: str
    top: tuple[tuple[str, float], ...] = ()  # labels and their probabilities, the most probable first
    truth: str | None = None  # where it is asked for and known
    stage: str | None = None  # of a failure, as in failures/
    error: str | None = None
    message: str | None = None


@dataclass(frozen=True)
class ClassifyReport:
    """What came of classifying. read = classified + failed."""

    read: int
    classified: int
    failed: int
    labels: tuple[str, ...]
    rows: tuple[Classified, ...]  # empty where `each` took them
    judged: int = 0  # those whose truth is one of the labels
    right: int = 0
    unknown: tuple[str, ...] = ()  # truths that are none of the labels: some of them
    confusion: tuple[tuple[str, str, int], ...] = ()  # truth, what it was taken for, how often

    @property
    def accuracy(self) -> float | None:
        """The part of those judged that is right."""
        return self.right / self.judged if self.judged else None
