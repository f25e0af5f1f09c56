"""SAM on some leaves, with the ascent gradient of a part of the batch."""

import numpy as np

import optax_sam
from tests.oracles.cases import cases, rising
from tests.oracles.step import count, of_length

# By hand, from the code of the network.
READ_ORDER = ('kernel', 'bias', 'out', 'offset')


def sparse_sam_layers(step, rho=0.05, layers=0.5, fraction=1.0):
  if isinstance(layers, float):
    number = max(1, round(layers * len(READ_ORDER)))
    layers = {name: name in READ_ORDER[-number:] for name in READ_ORDER}
  chosen = np.zeros(len(step.w))
  for name, is_chosen in layers.items():
    chosen[step.problem.slices[name]] = is_chosen
  rows = np.arange(len(step.parts[0]['y']))
  rows = rows[: count(fraction, len(rows))]
  ascent = chosen * step.ascent(rows=[rows] * len(step.parts))
  return step.gradients(of_length(step.number(rho), ascent))


CASES = cases(
  optax_sam.sparse_sam_layers,
  sparse_sam_layers,
  {'rho': 0.1},
  {'layers': 0.2, 'rho': rising(0.05, 0.01)},
  {'fraction': 0.25},
  {'layers': dict(zip(READ_ORDER, (True, False) * 2, strict=True))},
)
