"""What a kind of container provides. A new kind is a module with one class, and a line in `kinds.CONTAINERS`.

A container is a file that holds images and is read in order: an archive, a table. A listing cuts it into parts, each a
shard; a run reads the members of a part. `members.PartReader` has the rules that all kinds share: which members are
images, their ids, the size limit, and how failures read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from ..jobs.options import Columns
    from ..records import ContainerPart, Entry, Failure, Item, Member
    from .members import PartReader, Selection


class Container(Protocol):
    """A kind of file that holds images."""

    endings: tuple[str, ...]
    """How the names of its files end, in lower case."""

    def parts(self, path: str, own_id: str, shard_size: int, selection: Selection) -> Iterator[Entry]:
        """List the parts of a file, of at most about `shard_size` members each; Items where it only names images.

        A part's `members` is exact, or None where it is not known before reading. A Failure stands for a file that
        cannot be read.

        Raises:  InputError for a file that cannot be used.
        """
        ...

    def members(self, file: BinaryIO, part: ContainerPart, reader: PartReader) -> Generator[Member | Failure | Item]:
        """Read the images of a part, in order; an Item for an image that is only named.

        Each of the `part.members` becomes one outcome, or is counted in `reader.ignored`. Where the rest of a part
        cannot be read, one Failure with the part's id stands for it, and comes last.
        """
        ...


@runtime_checkable
class Table(Container, Protocol):
    """A container with columns besides that of the images, or a list of images or texts in the same format."""

    def read_types(self, path: str, columns: Columns) -> tuple[str, ...]:
        """Return the types that the kept columns have in an output. Raises: InputError for a column without one."""
        ...

    def holds_images(self, path: str, columns: Columns) -> bool:
        """Whether a file holds its images, rather than their paths, or texts. Raises: InputError as `parts`."""
        ...
