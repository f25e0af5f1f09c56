"""The claims, and the comparisons that test them."""

import dataclasses
import enum

from benchmarks.evidence.problems import PROBLEMS
from benchmarks.evidence.variants import BASE, VARIANTS

# Points of accuracy; smaller differences count as equal.
MARGIN = 0.5


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
  measure: str = 'test_accuracy'


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


def _accuracy(
  expected: Expected, against: str, *names: str
) -> list[Comparison]:
  return [Comparison(name, against, expected) for name in names]


_HIGHER, _LOWER = Expected.HIGHER, Expected.LOWER
_PAR, _AT_LEAST = Expected.ON_PAR, Expected.AT_LEAST_ON_PAR
_NOISY = tuple(
  name for name, problem in PROBLEMS.items() if problem.label_noise
)

CLAIMS = {
  1: Claim(
    'SAM and ASAM reach a better test accuracy than their base optimizer, in '
    'flatter minima.',
    'Foret et al., 2021; Kwon et al., 2021',
    (
      *_accuracy(_HIGHER, BASE, 'sam', 'asam'),
      *[
        Comparison(name, BASE, _LOWER, measure)
        for measure in ('sam_sharpness', 'top_eigenvalue')
        for name in ('sam', 'asam')
      ],
      *_accuracy(_HIGHER, 'base_twice', 'sam'),
    ),
  ),
  2: Claim(
    'SAM that perturbs half of the weights is on par with SAM; at 80, 90 and '
    '95 % sparsity little is lost.',
    'Mi et al., 2022',
    (
      *_accuracy(_PAR, 'sam', 'sparse_fisher_50', 'sparse_dynamic_50'),
      *_accuracy(
        Expected.REPORTED,
        'sam',
        *[
          f'sparse_{how}_{sparsity}'
          for sparsity in (80, 90, 95)
          for how in ('fisher', 'dynamic')
        ],
      ),
    ),
  ),
  3: Claim(
    'AE-SAM is on par with SAM at about half of the perturbed gradients, '
    'AE-LookSAM at about a fifth; both beat a random and a periodic choice of '
    'the same number of steps.',
    'Jiang et al., 2023',
    (
      *_accuracy(_PAR, 'sam', 'ae_sam', 'ae_look_sam'),
      Comparison('ae_sam', 'ss_sam_like_ae_sam', _HIGHER),
      Comparison('ae_sam', 'sam_every_2nd', _HIGHER),
      Comparison('ae_sam', 'look_sam_2', _HIGHER),
      Comparison('ae_look_sam', 'ss_sam_like_ae_look_sam', _HIGHER),
      Comparison('ae_look_sam', 'look_sam_5', _HIGHER),
    ),
  ),
  4: Claim(
    'Friendly SAM is at least on par with SAM; perturbing along the average '
    'that it subtracts is worse.',
    'Li et al., 2024',
    (
      *_accuracy(_AT_LEAST, 'sam', 'friendly_sam'),
      Comparison('friendly_sam', 'sam_along_average', _HIGHER),
    ),
  ),
  5: Claim(
    'K-SAM is better than its base optimizer at the same cost, and better than '
    'SAM on random subsets when they are small.',
    'Ni et al., 2022',
    (
      *_accuracy(_HIGHER, BASE, 'k_sam'),
      Comparison('k_sam', 'random_third', _HIGHER),
      Comparison('k_sam_eighth', 'random_eighth', _HIGHER),
    ),
  ),
  6: Claim(
    'Methods of this kind resist wrong labels.',
    'Foret et al., 2021',
    (
      *_accuracy(
        _HIGHER,
        BASE,
        'sam',
        'asam',
        'friendly_sam',
        'ae_sam',
        'sparse_fisher_50',
        'k_sam',
      ),
    ),
    _NOISY,
  ),
  7: Claim(
    "How much of SAM's gain each method has at its cost.",
    'no paper; the plot',
    tuple(
      _accuracy(
        Expected.REPORTED,
        BASE,
        'sam',
        'base_twice',
        'asam',
        'friendly_sam',
        'ae_sam',
        'ae_look_sam',
        'look_sam_5',
        'sparse_fisher_50',
        'k_sam',
        'esam',
        'subset_sam',
      )
    ),
  ),
}


def problems_of(number: int) -> tuple[str, ...]:
  """Returns the names of the problems of a claim."""
  return CLAIMS[number].problems or tuple(PROBLEMS)


def variants_of(numbers: list[int]) -> dict[str, None]:
  """Returns the names of all variants of some claims, base first."""
  names: dict[str, None] = {BASE: None} if numbers else {}
  for number in numbers:
    for comparison in CLAIMS[number].comparisons:
      for name in (comparison.against, comparison.variant):
        followed = VARIANTS[name].follows
        names |= {} if followed is None else {followed: None}
        names[name] = None
  return names


def measured() -> set[str]:
  """Returns the names of the variants with a comparison of sharpness."""
  return {
    name
    for claim in CLAIMS.values()
    for comparison in claim.comparisons
    if comparison.measure in ('sam_sharpness', 'top_eigenvalue')
    for name in (comparison.variant, comparison.against)
  }
