"""Tables of dataclasses as CSV."""

import csv
import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any


def write(path: pathlib.Path, kind: type, rows: Iterable[Any]) -> None:
  """Writes the rows atomically.

  Args:
    path: path of the CSV file.
    kind: the dataclass, whose fields are the columns.
    rows: instances of the dataclass.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_suffix('.partial')
  with temporary.open('w', encoding='utf-8', newline='') as file:
    names = [field.name for field in dataclasses.fields(kind)]
    writer = csv.DictWriter(file, names, lineterminator='\n')
    writer.writeheader()
    writer.writerows(map(dataclasses.asdict, rows))
  temporary.replace(path)
