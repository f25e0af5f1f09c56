import pytest

from optax_sam.train.config import output_dir
from tests.train.problems import names

KNOWN = frozenset({output_dir.CONFIG, 'report.html'})


def new_directory(target, *, overwrite=False):
  return output_dir.new_directory(target, overwrite=overwrite, known=KNOWN)


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


def test_output_is_created_atomically(tmp_path):
  target = tmp_path / 'a' / 'b'
  with new_directory(target) as directory:
    assert not target.exists()
    assert directory.parent == target.parent
  assert names(target.parent) == {'b'}


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
  (tmp_path / 'metrics.jsonl').touch()
  with pytest.raises(ValueError, match=r'has no config\.json|contains'):
    write(tmp_path, 'new', overwrite=True)
  (tmp_path / 'metrics.jsonl').unlink()
  (tmp_path / output_dir.CONFIG).write_text('{"steps": 1}')
  with pytest.raises(ValueError, match='not an output of optax-sam'):
    write(tmp_path, 'new', overwrite=True)
  assert names(tmp_path) == {output_dir.CONFIG}


def test_an_output_with_another_file_is_not_replaced(target):
  (target / 'notes.txt').write_text('mine')
  with pytest.raises(ValueError, match=r"contains 'notes\.txt'"):
    write(target, 'new', overwrite=True)
  assert (target / 'notes.txt').read_text() == 'mine'


def test_files_are_not_replaced(tmp_path):
  (tmp_path / 'file').write_text('mine')
  with pytest.raises(ValueError, match='is not a directory'):
    write(tmp_path / 'file', 'new', overwrite=True)
  with pytest.raises(OSError, match='file'):
    write(tmp_path / 'file' / 'run', 'new')
