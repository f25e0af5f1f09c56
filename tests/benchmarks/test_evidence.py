import dataclasses

import pytest

from benchmarks.evidence import __main__ as evidence
from benchmarks.evidence import claims, page, picture, problems, workers
from benchmarks.evidence.claims import Comparison, Expected
from benchmarks.evidence.runs import Run, Runs
from benchmarks.evidence.training import Outcome
from benchmarks.evidence.variants import BASE, VARIANTS
from optax_sam.train.reports.paired import Difference

STRICT = False  # flax's layer norm promotes

TINY = {
  name: dataclasses.replace(
    problem, steps=8, examples=100, learning_rates=(0.03, 0.1, 0.3, 1.0)
  )
  for name, problem in problems.PROBLEMS.items()
}


def outcome(accuracy, validation=0.5, fraction=1.0):
  return Outcome(fraction, 0.1, validation, accuracy, 0.2, 0.01, 3.0)


def run(variant, seed, accuracy, *, rho=0.1, tuning=False, validation=0.5):
  return Run(
    'digits',
    variant,
    0.03,
    rho,
    seed,
    tuning,
    'jax 0',
    outcome(accuracy, validation),
  )


def test_the_radius_is_chosen_by_validation_and_not_by_test_accuracy(tmp_path):
  runs = Runs(tmp_path, 'digits')
  runs.add(run(BASE, 1000, 0.5, tuning=True))
  for rho, validation, accuracy in (
    (0.05, 0.8, 0.1),
    (0.1, 0.6, 0.9),
    (0.2, 0.8, 0.5),
  ):
    for seed, shift in ((1000, -0.1), (1001, 0.1)):
      given = {'rho': rho, 'validation': validation + shift, 'tuning': True}
      runs.add(run('sam', seed, accuracy, **given))
  assert runs.chosen('sam') == (0.03, 0.05)  # a tie: the smaller radius
  for rho in (0.05, 0.1):
    runs.add(run('sam', 0, rho, rho=rho))
  assert runs.by_seed('sam', 'test_accuracy') == {0: 0.05}
  better = run(BASE, 1000, 0.5, tuning=True, validation=0.9)
  runs.add(dataclasses.replace(better, learning_rate=0.1))
  assert runs.by_seed('sam', 'test_accuracy') == {}


@pytest.mark.parametrize(
  ('interval', 'expected', 'said'),
  [
    ((0.01, 0.02), Expected.HIGHER, '**yes**'),
    ((-0.01, 0.02), Expected.HIGHER, 'not significant'),
    ((-0.02, -0.01), Expected.HIGHER, '**no, the opposite**'),
    ((-0.02, -0.01), Expected.LOWER, '**yes**'),
    ((0.01, 0.02), Expected.LOWER, '**no, the opposite**'),
    ((-0.004, 0.004), Expected.ON_PAR, '**yes**'),
    ((-0.004, 0.02), Expected.ON_PAR, 'open: the interval is too wide'),
    ((-0.004, 0.02), Expected.AT_LEAST_ON_PAR, '**yes**'),
    ((0.001, 0.02), Expected.ON_PAR, '**better**'),
    ((-0.02, -0.001), Expected.ON_PAR, '**no, worse**'),
    ((-0.02, -0.001), Expected.AT_LEAST_ON_PAR, '**no, worse**'),
    ((-0.02, 0.02), Expected.REPORTED, ''),
  ],
)
def test_the_verdict_follows_from_the_interval(interval, expected, said):
  found = Difference({0: 0.0}, sum(interval) / 2, interval, '')
  assert page.verdict(found, Comparison('sam', BASE, expected)) == said


def test_every_comparison_names_existing_variants_and_problems():
  for number, claim in claims.CLAIMS.items():
    assert set(claims.problems_of(number)) <= set(problems.PROBLEMS)
    for comparison in claim.comparisons:
      assert {comparison.variant, comparison.against} <= set(VARIANTS)
      assert hasattr(outcome(0), comparison.measure)
  used = claims.variants_of(list(claims.CLAIMS))
  assert set(used) == set(VARIANTS)


def test_the_cost_in_the_plot_is_that_of_the_runs(tmp_path):
  runs = Runs(tmp_path, 'digits')
  for seed, gain in ((0, 0.1), (1, 0.3)):
    runs.add(run(BASE, seed, 0.5))
    runs.add(run(BASE, 1000 + seed, 0.5, tuning=True))
    runs.add(run('ae_sam', 1000 + seed, 0.5, tuning=True))
    half = outcome(0.5 + gain, fraction=0.5)
    runs.add(dataclasses.replace(run('ae_sam', seed, 0), outcome=half))
  ((cost, gain),) = picture.points({'digits': runs}).values()
  assert cost == 1.5
  assert gain.mean == pytest.approx(0.2)


def test_the_number_of_wrong_labels_is_exact():
  import jax
  import numpy as np

  problem = problems.PROBLEMS['mnist1d_noise40']
  labels = np.arange(4000) % 10
  pool = {'inputs': np.arange(4000.0, dtype=np.float32), 'labels': labels}
  train, validation = problems.draw(jax.random.key(0), pool, problem, 10)
  for part in (train, validation):
    true = np.asarray(part['inputs']).astype(int) % 10
    assert np.mean(true != part['labels']) == 0.4
  drawn = [set(np.asarray(part['inputs'])) for part in (train, validation)]
  assert [len(each) for each in drawn] == [1000, 1000]
  assert not drawn[0] & drawn[1]


@pytest.mark.slow
def test_an_interrupted_command_resumes(tmp_path, monkeypatch, capsys):
  comparison = Comparison('sam', BASE, Expected.HIGHER)
  small = claims.Claim('SAM is better.', 'nobody', (comparison,), ('mnist1d',))
  for module in (problems, evidence, claims, page, workers):
    monkeypatch.setattr(module, 'PROBLEMS', TINY)
  monkeypatch.setattr(claims, 'CLAIMS', {1: small})
  options = evidence.Options(
    claims=(1,),
    problems=('digits', 'mnist1d'),  # the first does not belong to the claim
    seeds=2,
    tuning_seeds=1,
    workers=1,
    output=tmp_path,
  )
  evidence.main(options)
  assert '6 runs' in (said := capsys.readouterr().out)
  assert '7 runs' in said
  table = tmp_path / 'mnist1d.csv'
  whole = table.read_text().splitlines()
  assert len(whole) == 1 + 6 + 7
  table.write_text('\n'.join([*whole[:2], *whole[4:]]) + '\n')
  evidence.main(options)
  said = capsys.readouterr().out
  assert '2 runs' in said
  assert '0 runs' in said
  assert table.read_text().splitlines() == whole
  written = (tmp_path / 'evidence.md').read_text()
  assert '## 1. SAM is better.' in written
  assert 'Of 1 comparisons' in written
  assert 'digits' not in written
  assert (tmp_path / 'evidence.png').stat().st_size > 1000
