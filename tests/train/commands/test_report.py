import io
import json

import pytest
from rich.console import Console

from optax_sam.train.commands import compare
from optax_sam.train.config.configs import ReportConfig
from tests.train import problems
from tests.train.runs import refused

FILES = ('report.html', 'results.csv', 'metrics.jsonl')

pytestmark = pytest.mark.usefixtures('quick_eigenvalues')


def test_saved_results_give_the_same_report(tmp_path):
  config = problems.compare_config(
    methods=('sam',), seeds=2, timing_rounds=1, output=tmp_path / 'out'
  )
  compare.run(config, Console(file=io.StringIO()), 'optax-sam compare ...')
  written = {name: (tmp_path / 'out' / name).read_text() for name in FILES}
  for name in FILES:
    (tmp_path / 'out' / name).unlink()
  text = io.StringIO()
  compare.report(ReportConfig(directory=tmp_path / 'out'), Console(file=text))
  assert 'SAM' in text.getvalue()
  for name in FILES[:2]:
    assert (tmp_path / 'out' / name).read_text() == written[name]
  again = (tmp_path / 'out' / 'metrics.jsonl').read_text()
  for one, two in zip(
    again.splitlines(), written['metrics.jsonl'].splitlines(), strict=True
  ):
    assert json.loads(one) == json.loads(two)


def test_only_a_comparison_has_a_report(tmp_path, capsys):
  named = 'is not an output of `optax-sam compare`'
  assert named in refused(capsys, 'report', tmp_path)
  assert not list(tmp_path.iterdir())
