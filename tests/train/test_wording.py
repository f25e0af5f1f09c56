from optax_sam.train.reports.results import summarize
from optax_sam.train.reports.wording import findings, headline, reading
from tests.train.comparisons import (
  BETTER,
  ODD,
  SGD,
  SIMILAR,
  WORSE,
  comparison,
  of_accuracies,
  run,
  usual,
)


def said(made):
  return headline(made, summarize(made))


def test_headline_follows_the_intervals():
  assert said(of_accuracies(sgd=SGD, sam=BETTER)) == (
    'sam is more accurate than sgd (+3.10 points)'
  )
  assert said(of_accuracies(sgd=SGD, sam=WORSE)) == (
    'sam is less accurate than sgd (\N{MINUS SIGN}4.90 points)'
  )
  assert said(of_accuracies(sgd=SGD, sam=SIMILAR, asam=SIMILAR)) == (
    "No method's difference to sgd is resolved with 3 seeds"
  )
  assert said(of_accuracies(sgd=SGD, sam=SIMILAR)) == (
    'The difference between sam and sgd is not resolved with 3 seeds'
  )
  assert said(of_accuracies(sgd=SGD, sam=BETTER, asam=SIMILAR, gsam=WORSE)) == (
    'sam is more accurate than sgd (+3.10 points); gsam is less accurate than'
    ' sgd (\N{MINUS SIGN}4.90 points); 1 other is not resolved'
  )


def test_headline_counts_where_names_would_be_too_many():
  many = {f'm{index}': BETTER for index in range(5)}
  many['m3'] = [value + 0.01 for value in BETTER]
  assert said(of_accuracies(sgd=SGD, **many)) == (
    '5 of 5 methods are more accurate than sgd, m3 the most (+4.10 points)'
  )


def test_headline_without_intervals_claims_nothing():
  assert 'With one seed' in said(ODD['one seed'])
  assert said(ODD['no runs']).startswith('No run came to its end')
  assert said(ODD['base missing']).startswith('No comparison: sgd')
  assert said(ODD['base only']).startswith('Only sgd has run')
  assert said(ODD['equal']) == 'No difference to sgd can be judged'


def test_findings_give_the_part_of_luck_and_the_cost():
  made = usual()
  text = ' '.join(findings(made, summarize(made)))
  assert 'asam with +0.17 points' in text
  assert 'up to 10%' in text
  assert 'A step takes 2.00 (sam) times as long as one of sgd.' in text


def test_the_page_says_whose_runs_see_other_examples():
  assert 'held out' not in str(reading(usual()))
  runs = [
    run('sgd', 0, 0.9),
    run('sam', 0, 0.9, validations=[{'step': 9, 'validation_loss': 1.0}]),
  ]
  assert 'Not those of sam: training examples are held out' in str(
    reading(comparison(runs))
  )
