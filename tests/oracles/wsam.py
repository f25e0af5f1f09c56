"""WSAM, as one gradient and decoupled."""

import optax_sam
from tests.oracles import problems
from tests.oracles.cases import cases
from tests.oracles.step import Update, of_length


def wsam(step, rho=0.05, gamma=0.9):
  g = step.ascent()
  return g + gamma / (1 - gamma) * (step.gradients(of_length(rho, g)) - g)


def wsam_decoupled(step, learning_rate, rho=0.05, gamma=0.9):
  clean = step.gradients().mean(axis=0)
  gp = step.gradients(of_length(rho, step.ascent())).mean(axis=0)
  outside = step.number(learning_rate) * gamma / (1 - gamma) * (gp - clean)
  return Update(step.base.update(clean, step.w) - outside)


CASES = [
  *cases(optax_sam.wsam, wsam, {'rho': 0.1}, {'gamma': 0.3}),
  *cases(
    optax_sam.wsam_decoupled,
    wsam_decoupled,
    {'rho': 0.1, 'learning_rate': problems.NETWORK.rate},
  ),
]
