"""Throughput of the image input: `python -m benchmarks.image_input`.

The images are crops of the two photographs in scikit-learn, with the average
size and about the average number of bytes of ImageNet. They pass through the
input of the trainer, from shards or a folder, without a model.
"""

import itertools
import pathlib
import tempfile
import time

import numpy as np
import simplejpeg
import sklearn.datasets
import tyro
from PIL import Image

from optax_sam.train.data import imagenet
from optax_sam.train.reports import machine

_CLASSES = 4


def main(
  images: int = 800,
  seconds: float = 10,
  size: int = 224,
  threads: int = 16,
  quality: int = 92,
) -> None:
  """Prints images per second, in total and per core.

  Args:
    images: number of images.
    seconds: duration of each measurement, after a few warm-up batches.
    size: height and width of the resulting images.
    threads: number of threads of the input.
    quality: JPEG quality.
  """
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch, 'folder')
    shards = pathlib.Path(scratch, 'shards')
    count, total = _make_folder(folder, images, quality)
    imagenet.convert(folder, shards, shards=2, say=lambda _: None)
    print(', '.join(machine.describe().values()))
    print(
      f'JPEGs of 375 x 500 pixels and {total / count / 1000:.0f} kB, '
      f'to {size} x {size}\n'
    )
    print('| input | images per second | per core and second | cores |')
    print('|---|---|---|---|')
    for name, directory in (('shards', shards), ('folder', folder)):
      inputs = imagenet.ImageInputs(
        directory, batch_size=64, size=size, threads=threads, say=print
      )
      training = (inputs.batch(step, seed=0) for step in itertools.count())
      _report(f'{name}, training', training, seconds)
      inputs.close()
      tests = (inputs.test() for _ in itertools.count())
      evaluation = itertools.chain.from_iterable(tests)
      _report(f'{name}, evaluation', evaluation, seconds)


def _report(name, batches, seconds: float) -> None:
  for _ in range(4):
    next(batches)
  count = 0
  start, start_of_work = time.perf_counter(), time.process_time()
  while time.perf_counter() - start < seconds:
    count += len(next(batches)['labels'])
  elapsed = time.perf_counter() - start
  # CPU time of this process, independent of other load on the machine.
  work = time.process_time() - start_of_work
  print(
    f'| {name} | {count / elapsed:.0f} | {count / work:.0f} | '
    f'{work / elapsed:.2f} |'
  )


def _make_folder(
  folder: pathlib.Path, images: int, quality: int
) -> tuple[int, int]:
  """Writes crops of photographs; returns their number and size in bytes."""
  photographs = [
    Image.fromarray(photograph)
    for photograph in sklearn.datasets.load_sample_images().images
  ]
  random = np.random.default_rng(0)
  total = 0
  for number in range(images):
    # Half of the images for each split.
    part = 'train' if number % 2 else 'val'
    target = folder / part / f'class_{number // 2 % _CLASSES}'
    target.mkdir(parents=True, exist_ok=True)
    whole = photographs[number % 4 // 2]
    width = int(random.integers(400, whole.width))
    height = width * 3 // 4
    left = int(random.integers(whole.width - width + 1))
    top = int(random.integers(max(1, whole.height - height + 1)))
    box = (left, top, left + width, min(top + height, whole.height))
    pixels = np.asarray(whole.resize((500, 375), box=box))
    jpeg = simplejpeg.encode_jpeg(
      np.ascontiguousarray(pixels), quality=quality, colorsubsampling='420'
    )
    (target / f'{number:05}.jpeg').write_bytes(jpeg)
    total += len(jpeg)
  return images, total


if __name__ == '__main__':
  tyro.cli(main)
