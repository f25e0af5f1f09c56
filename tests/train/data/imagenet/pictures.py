"""Small images of distinct colours in the layout of ImageNet."""

import io
import pathlib
import struct
import zlib

import numpy as np
import simplejpeg
from PIL import Image

CLASSES = ('n01', 'n02', 'n03', 'n04', 'n05', 'n06')
TRAIN_PER_CLASS = 18
VAL_PER_CLASS = 4
SHAPES = ((33, 50), (50, 33), (17, 17), (11, 90), (90, 11), (1, 1), (64, 47))


def make_folder(directory: pathlib.Path) -> pathlib.Path:
  """Writes a valid image folder."""
  number = 0
  for split, count in (('train', TRAIN_PER_CLASS), ('val', VAL_PER_CLASS)):
    for name in CLASSES:
      folder = directory / split / name
      folder.mkdir(parents=True)
      for k in range(count):
        suffix = ('JPEG', 'jpg', 'JPG', 'jpeg')[k % 4]
        (folder / f'{name}_{k:02}.{suffix}').write_bytes(_picture(number))
        number += 1
  return directory


def stored(image: np.ndarray, kind: str = 'JPEG', mode: str = 'RGB') -> bytes:
  """Returns the file of an image."""
  file = io.BytesIO()
  quality = {'quality': 95} if kind == 'JPEG' else {}
  Image.fromarray(image).convert(mode).save(file, kind, **quality)
  return file.getvalue()


def header(height: int, width: int, kind: str) -> bytes:
  """Returns a small file that says that its image has this size."""
  file = stored(np.zeros((8, 8, 3), np.uint8), kind)
  if kind == 'JPEG':
    place = file.index(b'\xff\xc0') + 5
    return file[:place] + struct.pack('>2H', height, width) + file[place + 4 :]
  content = b'IHDR' + struct.pack('>2I', width, height) + file[24:29]
  checked = content + struct.pack('>I', zlib.crc32(content))
  return file[:12] + checked + file[33:]


def truncate(path: pathlib.Path) -> None:
  """Cuts a file in half."""
  content = path.read_bytes()
  path.write_bytes(content[: len(content) // 2])


def colours(source) -> np.ndarray:
  """Returns the mean colours of images, by Pillow; NaN for corrupt ones."""
  result = []
  for index in range(len(source)):
    try:
      with Image.open(io.BytesIO(source[index].content)) as image:
        pixels = np.asarray(image.convert('RGB'))
      result.append(pixels.mean((0, 1)))
    except OSError:
      result.append(np.full(3, np.nan))
  return np.array(result)


def recognize(batch, known: np.ndarray) -> list[int]:
  """Returns the index of the image of each example of a batch."""
  means = batch['inputs'].mean((1, 2), dtype=np.float64)
  distances = np.abs(means[:, None] - known[None]).max(-1)
  distances = np.nan_to_num(distances, nan=np.inf)
  assert (distances.min(1) < 9).all()
  return distances.argmin(1).tolist()


def _picture(number: int) -> bytes:
  colour = (20 + 19 * (number % 12), 20 + 19 * (number // 12), 130)
  height, width = SHAPES[number % len(SHAPES)]
  # Brighter to the right, so that crops and mirroring can be detected.
  light = np.linspace(-4, 4, width)[None, :, None]
  pixels = np.broadcast_to(colour + light, (height, width, 3))
  return simplejpeg.encode_jpeg(
    np.ascontiguousarray(pixels.round(), np.uint8), quality=95
  )
