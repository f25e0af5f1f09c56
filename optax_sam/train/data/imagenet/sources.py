"""The interface of a set of images, in a folder or in shards."""

import dataclasses
from typing import NamedTuple, Protocol


class Example(NamedTuple):
  """A stored image and its class.

  Attributes:
    jpeg: content of the file.
    label: index of the class, from 0.
    name: path relative to the folder of the split, as in `n01440764/1.JPEG`.
  """

  jpeg: bytes
  label: int
  name: str


class CorruptImage(ValueError):  # noqa: N818 (not an error)
  """An image whose bytes are damaged; the input skips it."""


class Source(Protocol):
  """Random access to the images of one split, as Grain requires.

  Reading is thread-safe.
  """

  def __len__(self) -> int:
    """Returns the number of images."""
    ...

  def __getitem__(self, index: int) -> Example:
    """Reads one image.

    Raises:
      CorruptImage: if the stored bytes are known to be damaged.
      ValueError: if they cannot be read at all.
    """
    ...

  def where(self, index: int) -> str:
    """Returns the location of an image, for messages."""
    ...


@dataclasses.dataclass(frozen=True)
class Images:
  """Training and validation images.

  Attributes:
    train: the training images, sorted by class and name.
    val: the validation images, sorted by class and name.
    classes: names of the classes; a label is an index into these.
  """

  train: Source
  val: Source
  classes: tuple[str, ...]
