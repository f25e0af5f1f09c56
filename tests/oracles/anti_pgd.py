"""Anti-PGD, after the base optimizer."""

import optax

import optax_sam
from tests.oracles.cases import cases, rising
from tests.oracles.step import Update


def sgd_and_anti_pgd(base, **arguments):
  return optax.chain(base, optax_sam.anti_pgd(**arguments))


def anti_pgd(step, sigma, key):
  noise = step.number(sigma) * step.normal(key, step.t + 1)
  before = step.memory.get('noise', 0.0)
  step.memory['noise'] = noise
  gradient = step.gradients().mean(axis=0)
  return Update(step.base.update(gradient, step.w) + noise - before)


CASES = cases(
  sgd_and_anti_pgd,
  anti_pgd,
  {'sigma': 0.02, 'key': 3},
  {'sigma': rising(0.0, 0.01)},
)
