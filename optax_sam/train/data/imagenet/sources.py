"""What the input asks of a set of images, wherever they are stored."""

import dataclasses
from typing import NamedTuple, Protocol


class Example(NamedTuple):
  """An image as it is stored, and its class.

  Attributes:
    jpeg: the file, byte by byte.
    label: of the class, from 0.
    name: of the file below the folder of its split, as in `n01440764/1.JPEG`.
  """

  jpeg: bytes
  label: int
  name: str


class CorruptImage(ValueError):  # noqa: N818 (not a complaint, but a finding)
  """An image whose bytes are damaged; the input goes on without it."""


class Source(Protocol):
  """Random access to the images of one split, as Grain wants it.

  Reading is safe from several threads.
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
    """Says where an image is, for messages."""
    ...


@dataclasses.dataclass(frozen=True)
class Images:
  """Training and validation images.

  Attributes:
    train: the training images, in the order of their classes and names.
    val: the validation images, likewise.
    classes: names of the classes; the label of a class is its place here.
  """

  train: Source
  val: Source
  classes: tuple[str, ...]
