"""Ordered SGD."""

import optax_sam
from tests.oracles.cases import cases
from tests.oracles.k_sam import top


def ordered_sgd(step, *, k):
  return step.gradients(rows=top(step, k))


CASES = cases(optax_sam.ordered_sgd, ordered_sgd, {'k': 0.5}, {'k': 3})
