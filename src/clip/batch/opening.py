"""Open a run's input, and refuse what can be refused before torch is loaded, which takes a second and more."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import InputError
from ..object_paths import open_place
from ..records import STDIN, join_root
from ..sources.remote.client import is_remote
from ..sources.source import Source
from ..store.manifest import MANIFEST, read_manifest
from ..store.writer import check_room
from ..weights.locate import check_name

if TYPE_CHECKING:
    from ..jobs.embed import EmbedJob


def refuse_early(job: EmbedJob) -> None:
    """Raise what `embed` would of the output, the input and the name of the weights; servers and stdin are not asked.

    Raises:  StoreError, StoreMismatchError, InputError, UnknownModelError, as `embed`.
    """
    check_room(open_place(job.output))
    if not any(name == STDIN or is_remote(name) for name in job.inputs):
        open_source(job)
    if job.model_options.untrained is None:
        check_name(job.model_options.name)


def holds_images(folder: str) -> bool:
    """Whether there is an image, an archive or a table of images below a folder."""
    try:
        return any(True for _ in Source((folder,)).with_base().shards(1, Counter(), 1))
    except InputError:  # it is empty, or cannot be listed
        return False


def open_source(job: EmbedJob) -> Source:
    """Return the input of a job, by the rules for ids and paths that its output has.

    Without a root of its own, lists that an output was made of start where they did then.

    Raises:  InputError where it is not there; StoreError for an output whose manifest is damaged.
    """
    source = Source(
        job.inputs, job.globs, job.columns, job.root, output=str(job.output), raw_previews=job.decode.raw_previews
    ).with_types()
    earlier = None if job.policy.overwrite else read_manifest(open_place(job.output) / MANIFEST)
    if earlier is None:
        return source.with_base()
    if earlier.base is None:
        return source
    kept, lists = join_root(earlier.find_base(open_place(job.output)), earlier.root), source.list_places()
    is_there = is_remote(kept) or os.path.isdir(kept)  # noqa: PTH112
    if not job.root and is_there and earlier.source == lists and STDIN not in lists:  # of which each is another list
        source = replace(source, root=kept)
    return source.with_base()
