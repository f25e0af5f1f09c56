import pathlib

import pytest

from optax_sam.train.config import output_dir

KNOWN = frozenset({output_dir.CONFIG, 'report.html'})


def write(target, text, **options):
  options = {'overwrite': False} | options
  with output_dir.new_directory(target, known=KNOWN, **options) as directory:
    (directory / 'report.html').write_text(text)
    output_dir.write_config(directory, 'compare', {'steps': 1})


def names(directory):
  return sorted(path.name for path in directory.iterdir())


def test_it_appears_whole(tmp_path):
  target = tmp_path / 'a' / 'b'
  with output_dir.new_directory(
    target, overwrite=False, known=KNOWN
  ) as directory:
    assert not target.exists()
    assert directory.parent == target.parent
  assert names(target.parent) == ['b']


@pytest.mark.parametrize('error', [OSError, KeyboardInterrupt])
def test_an_error_leaves_nothing(tmp_path, error):
  target = tmp_path / 'a' / 'b'
  with (
    pytest.raises(error),
    output_dir.new_directory(target, overwrite=False, known=KNOWN),
  ):
    raise error
  assert names(tmp_path) == []


def test_an_error_leaves_the_former_output(tmp_path):
  target = tmp_path / 'run'
  write(target, 'old')
  with (
    pytest.raises(OSError, match='full'),
    output_dir.new_directory(target, overwrite=True, known=KNOWN),
  ):
    raise OSError(28, 'full')
  assert (target / 'report.html').read_text() == 'old'
  assert names(tmp_path) == ['run']


def test_overwrite_replaces_a_former_output(tmp_path):
  target = tmp_path / 'run'
  write(target, 'old')
  write(target, 'new', overwrite=True)
  assert (target / 'report.html').read_text() == 'new'
  assert names(tmp_path) == ['run']


def test_without_overwrite_it_is_refused(tmp_path):
  target = tmp_path / 'run'
  write(target, 'old')
  with pytest.raises(ValueError, match='add --overwrite'):
    write(target, 'new')
  assert (target / 'report.html').read_text() == 'old'


def test_what_is_not_ours_is_never_replaced(tmp_path):
  target = tmp_path / 'thesis'
  target.mkdir()
  with pytest.raises(ValueError, match=r'has no config\.json'):
    write(target, 'new', overwrite=True)
  (target / output_dir.CONFIG).write_text('{"steps": 1}')  # of another program
  with pytest.raises(ValueError, match='not an output of optax-sam'):
    write(target, 'new', overwrite=True)
  assert names(target) == [output_dir.CONFIG]


def test_ours_with_somebodys_file_is_not_replaced(tmp_path):
  target = tmp_path / 'run'
  write(target, 'old')
  (target / 'notes.txt').write_text('mine')
  with pytest.raises(ValueError, match=r"contains 'notes\.txt'"):
    write(target, 'new', overwrite=True)
  assert (target / 'notes.txt').read_text() == 'mine'


def test_files_and_links_are_not_replaced(tmp_path):
  write(tmp_path / 'run', 'old')
  link = tmp_path / 'link'
  link.symlink_to(tmp_path / 'run')
  file = tmp_path / 'file'
  file.write_text('mine')
  for target in (link, file):
    with pytest.raises(ValueError, match='is not a directory'):
      write(target, 'new', overwrite=True)


def test_what_appears_meanwhile_is_kept(tmp_path):
  target = tmp_path / 'run'
  with (
    pytest.raises(ValueError, match='exists'),
    output_dir.new_directory(target, overwrite=False, known=KNOWN),
  ):
    write(target, 'theirs')
  assert (target / 'report.html').read_text() == 'theirs'
  assert names(tmp_path) == ['run']


def test_a_failed_exchange_is_taken_back(tmp_path, monkeypatch):
  target = tmp_path / 'run'
  write(target, 'old')
  rename = pathlib.Path.rename

  def fail_once(self, new):
    if pathlib.Path(new) == target and 'former' not in str(self):
      raise OSError(5, 'no')
    return rename(self, new)

  monkeypatch.setattr(pathlib.Path, 'rename', fail_once)
  with pytest.raises(OSError, match='no'):
    write(target, 'new', overwrite=True)
  assert (target / 'report.html').read_text() == 'old'
  assert names(tmp_path) == ['run']


def test_a_file_in_the_way_is_an_error(tmp_path):
  (tmp_path / 'file').write_text('mine')
  with pytest.raises(OSError, match='file'):
    write(tmp_path / 'file' / 'run', 'new')
