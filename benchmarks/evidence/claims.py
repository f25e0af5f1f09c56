"""The claims, and the comparisons that test them."""

import dataclasses
import enum
from collections.abc import Iterable

from benchmarks.evidence import workers
from benchmarks.evidence.problems import PROBLEMS
from benchmarks.evidence.variants import BASE, SAM, VARIANTS

# In the units of the score; smaller differences count as equal.
MARGIN = 0.5
SCORE = 'test_score'


class Expected(enum.Enum):
  """The claimed relation of the first of two variants to the second."""

  HIGHER = 'higher'
  LOWER = 'lower'
  ON_PAR = 'on par'
  AT_LEAST_ON_PAR = 'at least on par'
  REPORTED = 'no claim'


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Two variants and the claim about their difference.

  Attributes:
    variant: the first of the two.
    against: the second.
    expected: the claimed relation of the first to the second.
    measure: a column of the runs.
  """

  variant: str
  against: str
  expected: Expected
  measure: str = SCORE


@dataclasses.dataclass(frozen=True)
class Claim:
  """A claim and its tests.

  Attributes:
    sentence: the claim.
    source: papers with the claim.
    comparisons: comparisons that test it, on every problem.
    problems: names of the problems; empty for all.
  """

  sentence: str
  source: str
  comparisons: tuple[Comparison, ...]
  problems: tuple[str, ...] = ()


def _scores(expected: Expected, against: str, *names: str) -> list[Comparison]:
  return [Comparison(name, against, expected) for name in names]


_HIGHER, _LOWER = Expected.HIGHER, Expected.LOWER
_PAR, _AT_LEAST = Expected.ON_PAR, Expected.AT_LEAST_ON_PAR
_NOISY = tuple(
  name for name, problem in PROBLEMS.items() if problem.label_noise
)
FLATNESS = (
  'sam_sharpness',
  'random_sharpness',
  'rounding_rise',
  'top_eigenvalue',
)

CLAIMS = {
  1: Claim(
    'Sparse SAM, which perturbs half of the weights, is on par with SAM.',
    'Mi et al., 2022',
    (
      *_scores(_PAR, SAM, 'sparse_fisher_50', 'sparse_dynamic_50'),
      *_scores(
        Expected.REPORTED,
        SAM,
        *[
          f'sparse_{how}_{sparsity}'
          for sparsity in (80, 90)
          for how in ('fisher', 'dynamic')
        ],
      ),
    ),
  ),
  2: Claim(
    'AE-SAM is at least on par with SAM, and better than SAM at the same '
    'number of random or regularly spaced steps.',
    'Jiang et al., 2023',
    (
      *_scores(_AT_LEAST, SAM, 'ae_sam'),
      *_scores(_HIGHER, 'ss_sam_like_ae_sam', 'ae_sam'),
      *_scores(_HIGHER, 'sam_every_2nd', 'ae_sam'),
    ),
  ),
  3: Claim(
    'AE-LookSAM is on par with SAM, and better than LookSAM and than SAM at '
    'the same number of random steps.',
    'Jiang et al., 2023',
    (
      *_scores(_PAR, SAM, 'ae_look_sam'),
      *_scores(_HIGHER, 'look_sam_5', 'ae_look_sam'),
      *_scores(_HIGHER, 'ss_sam_like_ae_look_sam', 'ae_look_sam'),
    ),
  ),
  4: Claim(
    'Friendly SAM is at least on par with SAM, and better than SAM along the '
    'average that it subtracts.',
    'Li et al., 2024',
    (
      *_scores(_AT_LEAST, SAM, 'friendly_sam'),
      *_scores(_HIGHER, 'sam_along_average', 'friendly_sam'),
    ),
  ),
  5: Claim(
    'K-SAM is better than its base optimizer at the same cost, and better than '
    'SAM on random subsets.',
    'Ni et al., 2022',
    (
      *_scores(_HIGHER, BASE, 'k_sam'),
      *_scores(_HIGHER, 'random_third', 'k_sam'),
      *_scores(_HIGHER, 'random_eighth', 'k_sam_eighth'),
    ),
  ),
  6: Claim(
    'SAM and its variants resist wrong labels.',
    'Foret et al., 2021',
    (
      *_scores(
        _HIGHER,
        BASE,
        SAM,
        'asam',
        'friendly_sam',
        'ae_sam',
        'sparse_fisher_50',
      ),
    ),
    _NOISY,
  ),
  7: Claim(
    'SAM and ASAM end in flatter minima than their base optimizer.',
    'Foret et al., 2021; Kwon et al., 2021',
    tuple(
      Comparison(name, BASE, _LOWER, measure)
      for measure in FLATNESS
      for name in (SAM, 'asam')
    ),
  ),
}


def variants_of(problem: str) -> list[str]:
  """Returns the names of the variants that run on a problem, in their order."""
  return [
    name
    for name, variant in VARIANTS.items()
    if (variant.in_short or not PROBLEMS[problem].in_short)
    and (PROBLEMS[problem].has_norms or not variant.needs_norms)
  ]


def tasks(
  numbers: Iterable[int], problems: Iterable[str], variants: Iterable[str]
) -> list[workers.Task]:
  """Returns problem and variant of all runs of some claims.

  All claims need all variants; those of the frontier come first.
  """
  numbers = tuple(numbers)
  wanted = set(variants)
  compared = [x for n in numbers for x in CLAIMS[n].comparisons]
  if set(numbers) < set(CLAIMS):
    wanted &= {name for x in compared for name in (x.variant, x.against)}
  problems = [
    name
    for name in problems
    if any(name in (CLAIMS[n].problems or PROBLEMS) for n in numbers)
    and any({x.variant, x.against} <= set(variants_of(name)) for x in compared)
  ]
  found: dict[workers.Task, None] = {}
  for problem in problems:
    for name in variants_of(problem):
      if name in wanted:
        task = (problem, name)
        needed = workers.needs(task)
        others = [x for one in needed for x in (*workers.needs(one), one)]
        found |= dict.fromkeys((*others, task))
  return list(found)
