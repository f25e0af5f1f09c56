import contextlib
import os

import pytest

from optax_sam.train.config import output_dir
from tests.train.problems import names

KNOWN = frozenset({output_dir.CONFIG, 'report.html'})


@contextlib.contextmanager
def new_directory(target, *, overwrite=False):
  with (
    output_dir.opened(target, overwrite=overwrite, known=KNOWN),
    output_dir.staged(target) as directory,
  ):
    yield directory


def write(target, text, *, overwrite=False):
  with new_directory(target, overwrite=overwrite) as directory:
    (directory / 'report.html').write_text(text)
    output_dir.write_config(directory, 'compare', {'steps': 1})


@pytest.fixture
def target(tmp_path):
  """An existing output in an otherwise empty directory."""
  write(tmp_path / 'run', 'old')
  yield tmp_path / 'run'
  assert names(tmp_path) == {'run'}


def text(target):
  return (target / 'report.html').read_text()


def test_files_appear_when_all_are_written(tmp_path):
  target = tmp_path / 'a' / 'b'
  with new_directory(target) as directory:
    (directory / 'report.html').touch()
    assert not (target / 'report.html').exists()
  assert names(target) == {'.lock', 'report.html'}


def test_permissions_follow_the_umask(tmp_path):
  former = os.umask(0o027)
  try:
    write(tmp_path / 'run', 'x')
  finally:
    os.umask(former)
  found = [tmp_path / 'run', *(tmp_path / 'run').iterdir()]
  assert {path.stat().st_mode & 0o777 for path in found} == {0o750, 0o640}


def test_a_second_process_is_refused(target):
  for overwrite in (False, True):
    with (
      output_dir.locked(target),
      pytest.raises(ValueError, match=r'is being written|exists'),
    ):
      write(target, 'new', overwrite=overwrite)
  assert text(target) == 'old'


def test_files_of_an_interrupted_command_are_accepted(tmp_path):
  (tmp_path / '.lock').touch()
  (tmp_path / '.config.json.unfinished').touch()
  (tmp_path / '.unfinished').mkdir()
  write(tmp_path, 'new')
  assert text(tmp_path) == 'new'


@pytest.mark.parametrize('error', [OSError, KeyboardInterrupt])
def test_after_an_error_no_output_exists(tmp_path, error):
  with pytest.raises(error), new_directory(tmp_path / 'a' / 'b'):
    raise error
  assert names(tmp_path) == set()


def test_after_an_error_the_former_output_is_unchanged(target):
  with (
    pytest.raises(OSError, match='full'),
    new_directory(target, overwrite=True),
  ):
    raise OSError(28, 'full')
  assert text(target) == 'old'


def test_overwrite_replaces_a_former_output(target):
  with pytest.raises(ValueError, match='add --overwrite'):
    write(target, 'new')
  assert text(target) == 'old'
  write(target, 'new', overwrite=True)
  assert text(target) == 'new'


def test_the_output_of_another_program_is_never_replaced(tmp_path):
  (tmp_path / 'report.html').touch()
  with pytest.raises(ValueError, match=r'has no config\.json'):
    write(tmp_path, 'new', overwrite=True)
  (tmp_path / output_dir.CONFIG).write_text('{"steps": 1}')
  with pytest.raises(ValueError, match='not an output of optax-sam'):
    write(tmp_path, 'new', overwrite=True)
  assert names(tmp_path) == {output_dir.CONFIG, 'report.html'}


def test_an_output_with_another_file_is_not_replaced(target):
  (target / 'notes.txt').write_text('mine')
  with pytest.raises(ValueError, match=r"contains 'notes\.txt'"):
    write(target, 'new', overwrite=True)
  assert (target / 'notes.txt').read_text() == 'mine'


def test_a_directory_in_place_of_a_file_is_foreign(target):
  (target / 'report.html').unlink()
  (target / 'report.html').mkdir()
  with pytest.raises(ValueError, match=r"contains 'report\.html'"):
    write(target, 'new', overwrite=True)


def test_files_are_not_replaced(tmp_path):
  (tmp_path / 'file').write_text('mine')
  with pytest.raises(ValueError, match='is not a directory'):
    write(tmp_path / 'file', 'new', overwrite=True)
  with pytest.raises(OSError, match='file'):
    write(tmp_path / 'file' / 'run', 'new')
