import csv
import dataclasses
import math
import re

import numpy as np
import pytest

from benchmarks.evidence import __main__ as evidence
from benchmarks.evidence import (
  advice,
  analysis,
  answers,
  claims,
  measurement,
  observations,
  page,
  pictures,
  problems,
  workers,
)
from benchmarks.evidence.claims import Comparison, Expected
from benchmarks.evidence.problems import PARTS, PROBLEMS
from benchmarks.evidence.runs import Run, Runs
from benchmarks.evidence.training import Outcome, Trainer
from benchmarks.evidence.variants import BASE, SAM, VARIANTS
from optax_sam.train.config import flags

STRICT = False  # flax's layer norm promotes


def run(variant, seed, score, **changed):
  curve = ' '.join(f'{score - PARTS + 1 + i}' for i in range(PARTS))
  outcome = Outcome(
    seconds=2.0,
    gradients=changed.pop('gradients', 1.0),
    second_gradients=1.0,
    train_loss=0.1,
    train_score=99.0,
    validation_loss=0.2,
    validation_score=changed.pop('validation', score),
    test_loss=0.3,
    test_score=score,
    curve=changed.pop('curve', curve),
    sam_sharpness=changed.pop('sharpness', score / 100),
  )
  given = {
    'problem': 'digits_noise',
    'learning_rate': 0.03,
    'rho': 0.1,
    'parts': PARTS,
    'tuning': False,
    'versions': 'jax 0',
  }
  return Run(variant=variant, seed=seed, outcome=outcome, **(given | changed))


def runs_of(directory, scores, problem='digits_noise'):
  """Runs with scores by variant, each a list with one score a seed."""
  runs = Runs(directory, problem)
  for variant, values in scores.items():
    for seed, score in enumerate(values):
      runs.add(run(variant, seed, score, problem=problem))
  return runs


def test_runs_are_read_as_they_were_written(tmp_path):
  runs = Runs(tmp_path, 'digits_noise')
  runs.add(run(SAM, 1, 70.1234567))
  runs.add(run(BASE, 0, 69.0, tuning=True))
  (first, _), again = runs.all, Runs(tmp_path, 'digits_noise').all
  assert list(map(str, again)) == list(map(str, runs.all))
  assert first.outcome.test_score == 70.1235


@pytest.mark.parametrize(
  ('mean', 'interval', 'p_value', 'expected', 'said'),
  [
    (1.5, (1, 2), 0.01, Expected.HIGHER, 'yes'),
    (1.5, (-1, 4), 0.2, Expected.HIGHER, 'open'),
    (-1.5, (-2, -1), 0.01, Expected.HIGHER, 'opposite'),
    (-1.5, (-2, -1), 0.01, Expected.LOWER, 'yes'),
    (1.5, (1, 2), 0.01, Expected.LOWER, 'opposite'),
    (0.0, (-0.1, 0.1), 0.01, Expected.ON_PAR, 'yes'),
    (0.0, (-5, 5), 0.6, Expected.ON_PAR, 'open'),
    (-3.0, (-4, -2), 0.9, Expected.ON_PAR, 'opposite'),
    (-3.0, (-4, -2), 0.9, Expected.AT_LEAST_ON_PAR, 'opposite'),
    (3.0, (2, 4), 0.01, Expected.AT_LEAST_ON_PAR, 'yes'),
    (3.0, (2, 4), 0.01, Expected.REPORTED, ''),
  ],
)
def test_the_verdict_follows_from_the_interval(
  mean, interval, p_value, expected, said
):
  found = analysis.paired.Difference({0: mean}, mean, interval)
  assert analysis.says(found, expected, p_value) == said


def test_on_par_is_tested_against_the_margin():
  values = [0.1, -0.2, 0.15, 0.05, -0.04]
  found = analysis.paired.paired_difference(
    dict(enumerate(values)), dict.fromkeys(range(5), 0.0)
  )
  error = np.std(values, ddof=1) / math.sqrt(5)
  above, below = (
    analysis.stats.t.sf((0.5 + sign * np.mean(values)) / error, 4)
    for sign in (1, -1)
  )
  at_least = analysis.p_value(found, Expected.AT_LEAST_ON_PAR, 0.5)
  assert at_least == pytest.approx(above)
  on_par = analysis.p_value(found, Expected.ON_PAR, 0.5)
  assert on_par == pytest.approx(max(above, below))
  assert analysis.p_value(found, Expected.HIGHER, 0.5) == found.p_value


def test_a_mean_is_in_standard_deviations_and_corrected(tmp_path):
  every = {}
  for name, shift in (('digits_noise', 2), ('conv_noise', 4)):
    better = [72 + shift, 73 + shift, 74.5 + shift]
    scores = {BASE: [70, 71, 72], SAM: better, 'asam': better}
    every[name] = runs_of(tmp_path, scores, name)
  comparison = Comparison(SAM, BASE, Expected.HIGHER)
  # The median of the deviations of base, SAM and ASAM.
  unit = np.std([0, 1, 2.5], ddof=1)
  mean = analysis.mean_difference(every, comparison)
  assert mean.mean == pytest.approx(np.mean([5, 5, 5.5]) / unit)
  other = dataclasses.replace(comparison, variant='asam')
  claim = claims.Claim('Both are better.', 'nobody', (comparison, other))
  found = analysis.results(every, claim)
  plain = analysis.difference(every['conv_noise'], comparison).p_value
  for result in found:
    # The smallest two of four p-values.
    adjusted = result.cells['conv_noise'].adjusted_p_value
    assert adjusted == pytest.approx(4 * plain)
  assert analysis.verdict(found) == 'shown'


def test_a_claim_waits_for_all_of_its_variants(tmp_path):
  runs = runs_of(tmp_path, {BASE: [1, 2], SAM: [3, 5]})
  every = {'digits_noise': runs}
  assert not any(x.cells for x in analysis.results(every, claims.CLAIMS[6]))
  page_text = page.text(every, {})
  assert '### 6.' not in page_text
  assert f'2 of {len(claims.variants_of("digits_noise"))} variants' in page_text


def test_cost_to_the_target_counts_gradients(tmp_path):
  runs = Runs(tmp_path, 'digits_noise')
  for seed in range(3):
    runs.add(run(BASE, seed, 5, curve='1 2 3 4 5 5 5 4'))
    runs.add(run(SAM, seed, 5, curve='1 2 5 5', gradients=2.0))
    runs.add(run('ae_sam', seed, 5, curve='1 2 3 4'))
  assert analysis.gradients_to_target(runs, SAM) == pytest.approx(6 / 5)
  assert analysis.gradients_to_target(runs, 'ae_sam') is None


def test_rank_correlation_ignores_what_was_not_measured(tmp_path):
  runs = Runs(tmp_path, 'digits_noise')
  for seed, (score, sharpness) in enumerate(
    ((1, 0.3), (2, 0.2), (3, 0.1), (9, math.nan))
  ):
    runs.add(run(BASE, seed, score, sharpness=sharpness))
  runs.add(run(BASE, 9, 5, tuning=True))
  found = analysis.rank_correlation(runs, 'sam_sharpness')
  assert found == (pytest.approx(-1), 3)


def test_every_comparison_names_variants_that_run_together():
  for claim in claims.CLAIMS.values():
    for comparison in claim.comparisons:
      names = {comparison.variant, comparison.against}
      assert names <= set(VARIANTS)
      assert any(names <= set(claims.variants_of(name)) for name in PROBLEMS)
      assert comparison.measure in {x.name for x in dataclasses.fields(Outcome)}
  for problem in claims.tasks(claims.CLAIMS, PROBLEMS, VARIANTS):
    assert set(workers.needs(problem)) <= set(
      claims.tasks(claims.CLAIMS, PROBLEMS, VARIANTS)
    )


def test_the_number_of_wrong_labels_is_exact():
  problem = PROBLEMS['digits_noise']
  true, _ = problems.draw(dataclasses.replace(problem, label_noise=0.0), 3)
  noisy, validation = problems.draw(problem, 3)
  np.testing.assert_array_equal(true['inputs'], noisy['inputs'])
  assert np.mean(true['labels'] != noisy['labels']) == 0.4
  assert len(validation['labels']) == problem.validation
  again, _ = problems.draw(problem, 3)
  np.testing.assert_array_equal(again['labels'], noisy['labels'])


def test_every_epoch_has_each_example_once():
  problem = PROBLEMS['digits_noise']
  rows = problems.order(problem, 0, 30)
  assert rows.shape == (30, problem.batch_size)
  for epoch in np.split(rows[:24], 2):
    assert len(np.unique(epoch)) == problem.examples


@pytest.fixture
def few(monkeypatch):
  small = dataclasses.replace(
    PROBLEMS['digits_noise'],
    steps=PARTS,
    examples=100,
    validation=50,
    tuning_seeds=1,
    measured=16,
  )
  for module in (
    problems,
    workers,
    claims,
    analysis,
    answers,
    measurement,
    observations,
    page,
    pictures,
    evidence,
  ):
    monkeypatch.setattr(module, 'PROBLEMS', {'digits_noise': small})
  return small


def test_a_run_has_the_steps_and_the_cost_of_its_variant(few):
  trainer = Trainer(few, VARIANTS['late_sam'], 0.0)
  found = trainer.outcome(0, 0.1, 0.1, PARTS, measured=True)
  # The last fifth of eight steps.
  assert found.second_gradients == 2 / 8
  assert found.gradients == 1.25
  assert len(found.curve.split()) == PARTS
  assert found.top_eigenvalue > 0
  half = Trainer(few, VARIANTS['layers'], 0.0)
  found = half.outcome(0, 0.1, 0.1, 1, measured=False)
  assert 1 < found.gradients < 2
  assert len(found.curve.split()) == 1
  assert math.isnan(found.test_score)


@pytest.mark.slow
@pytest.mark.usefixtures('few')
def test_an_interrupted_command_resumes(tmp_path, capsys):
  options = evidence.Options(
    problems=('digits_noise',),
    variants=(SAM,),
    seeds=2,
    workers=1,
    output=tmp_path,
  )
  evidence.main(options)
  said = capsys.readouterr().out
  table = tmp_path / 'digits_noise.csv'
  whole = table.read_text().splitlines()
  counts = [int(x) for x in re.findall(r'(\d+) runs in', said)]
  assert len(whole) == 1 + sum(counts)
  table.write_text('\n'.join([*whole[:2], *whole[4:]]) + '\n')
  evidence.main(options)
  assert (
    sum(int(x) for x in re.findall(r'(\d+) runs in', capsys.readouterr().out))
    <= 2
  )
  again = table.read_text().splitlines()
  without_time = lambda lines: [
    re.sub(r'jax [^,]*,[\d.e-]+,', '', line) for line in lines
  ]
  assert without_time(again) == without_time(whole)
  tried = Runs(tmp_path, 'digits_noise').tried(SAM)
  assert set(tried) == {'learning_rate', 'rho'}
  evidence.main(dataclasses.replace(options, list=True))
  assert 'finished digits_noise' in capsys.readouterr().out


@pytest.mark.usefixtures('few')
def test_an_observation_is_recorded_once(tmp_path):
  runs_of(tmp_path, {SAM: [70, 71]})
  observations.record(tmp_path, 'digits_noise')
  path = tmp_path / observations.FILE
  with path.open(encoding='utf-8', newline='') as file:
    rows = list(csv.DictReader(file))
  norms = [float(x['value']) for x in rows if x['kind'] == 'norm']
  assert len(norms) == PARTS
  assert min(norms) > 0
  for step in range(PARTS):
    at_step = [
      float(x['value'])
      for x in rows
      if (x['kind'], x['step']) == ('difference', f'{step}')
    ]
    assert at_step == sorted(at_step)
    # Relative to the root mean square.
    assert at_step[0] < 1 < at_step[-1]
  recorded = path.read_text()
  observations.record(tmp_path, 'digits_noise')
  assert path.read_text() == recorded


def test_the_page_is_that_of_the_records():
  every, appendix = (
    analysis.load(evidence.RESULTS, in_appendix=x) for x in (False, True)
  )
  recorded = (evidence.RESULTS / page.FILE).read_text(encoding='utf-8')
  # The line with machine and date.
  line = re.compile(r'^\d{4}-\d\d-\d\d, .*$', re.MULTILINE)
  assert line.sub('', page.text(every, appendix)) == line.sub('', recorded)


@pytest.mark.slow
@pytest.mark.parametrize('number', claims.CLAIMS)
def test_the_runs_of_a_claim_alone_have_its_verdict(number, tmp_path, capsys):
  tasks = claims.tasks([number], PROBLEMS, VARIANTS)
  for name in {problem for problem, _ in tasks}:
    head, *lines = (evidence.RESULTS / f'{name}.csv').read_text().splitlines()
    ran = [x for x in lines if (name, x.split(',')[1]) in tasks]
    (tmp_path / f'{name}.csv').write_text('\n'.join([head, *ran, '']))
  evidence.main(evidence.Options((number,), output=tmp_path, page=True))
  page_line, verdict, scores = capsys.readouterr().out.splitlines()
  assert page_line == f'Page: {tmp_path / page.FILE}'
  found = re.fullmatch(rf'Claim {number}: (.*) \(recorded: (.*)\)', verdict)
  assert found[1] == found[2]
  assert found[1] in ('shown', 'not shown', 'contradicted')
  count, whole = re.findall(r'\d+', scores)
  assert count == whole == str(5 * len(tasks))


def test_a_claim_runs_only_on_problems_on_which_it_compares():
  # The vision transformer has no variant of K-SAM.
  assert {x for x, _ in claims.tasks([5], PROBLEMS, VARIANTS)} == {
    'digits_noise',
    'conv_noise',
    'dense',
  }


def test_advice_takes_the_best_method_of_a_budget(tmp_path):
  scores = {
    name: [70.0 + i, 71.0 + i, 72.5 + i]
    for i, name in enumerate(claims.variants_of('digits_noise'))
    if VARIANTS[name].in_short
  }
  every = {'digits_noise': runs_of(tmp_path, scores)}
  best = list(scores)[-1]
  assert advice.name_of(best) in advice.which_method(every)
  assert advice.name_of('sam') == 'SAM (`sam`)'


def test_sentences_of_the_guides_agree_with_the_records():
  every = analysis.load(evidence.RESULTS)
  docs = evidence.RESULTS.parents[2] / 'docs'
  text = (docs / 'learn' / 'how_sam_works.md').read_text()
  sentence = 'the mean gain of SAM is not statistically significant'
  assert sentence in ' '.join(text.split())
  assert not analysis.mean_difference(every, analysis.gain(SAM)).significant
  text = (docs / 'methods' / 'texts.toml').read_text()
  assert 'not show that it is better than random steps' in text
  against = {
    x.comparison.against: x.says
    for x in analysis.results(every, claims.CLAIMS[2])
  }
  assert against['ss_sam_like_ae_sam'] == 'open'
  text = (docs / 'howto' / 'tune_the_radius.md').read_text()
  below = sum(runs.chosen(SAM)[1] < 0.05 for runs in every.values())
  assert (below, len(every)) == (4, 6)
  assert 'below 0.05 on four of six' in ' '.join(text.split())


def test_recommended_methods_gain_as_much_as_sam_and_compare_trains_them():
  every = analysis.load(evidence.RESULTS)
  per_gradient = {
    advice.name_of(name): gain.mean / cost
    for name, (cost, gain) in analysis.frontier(every).items()
    if gain.mean is not None
  }
  text = advice.which_method(every)
  recommended = {
    title: re.search(r'`(\w+)`', title)[1]
    for title in per_gradient
    if title in text and '`' in title  # not longer training
  }
  assert recommended
  assert set(recommended.values()) <= set(flags.DEFAULT_METHODS)
  for title in recommended:
    assert per_gradient[title] >= per_gradient['SAM (`sam`)']
