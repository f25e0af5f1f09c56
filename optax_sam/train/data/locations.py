"""Directories in which the files of a named dataset may be."""

import os
import pathlib
from collections.abc import Callable, Sequence

VARIABLE = 'OPTAX_SAM_DATA'
_SYSTEM = pathlib.Path('/usr/share/datasets')


def find(
  name: str,
  data_dir: pathlib.Path | None,
  folders: Sequence[str],
  has_files: Callable[[pathlib.Path], bool],
  advice: str,
) -> pathlib.Path:
  """Returns the directory with the files of a dataset.

  Args:
    name: name of the dataset.
    data_dir: where to search; None for `$OPTAX_SAM_DATA`, then the system.
    folders: names of the directory, below the place that is searched.
    has_files: whether a directory has the files.
    advice: where to get the files, for the error message.

  Raises:
    ValueError: if they are in none of these places.
  """
  given = os.environ.get(VARIABLE)
  places = [_SYSTEM] if data_dir is None else [data_dir]
  if data_dir is None and given:
    places.insert(0, pathlib.Path(given))
  for place in places:
    for folder in ('', *folders):
      directory = place / folder
      if directory.is_dir() and has_files(directory):
        return directory
  searched = ' and '.join(map(str, places))
  msg = (
    f'--dataset {name} is not in {searched}; {advice}, and give its directory '
    f'by --data-dir or ${VARIABLE}'
  )
  raise ValueError(msg)
