"""LPF-SGD."""

import numpy as np

import optax_sam
from tests.oracles.cases import cases


def lpf_sgd(
  step, gamma=0.0005, *, micro_batches=8, final_ratio=15.0, total_steps, key
):
  progress = min(step.t / total_steps, 1)
  grown = (final_ratio - 1) * (1 - np.cos(np.pi * progress)) / 2
  size = np.zeros(len(step.w))
  for name, leaf in step.problem.slices.items():
    w = step.w[leaf].reshape(step.problem.shapes[name])
    # A filter has the weights of one output.
    filters = w.reshape(-1, w.shape[-1]) if w.ndim > 1 else w.reshape(-1, 1)
    lengths = np.linalg.norm(filters, axis=0)
    size[leaf] = np.tile(lengths, len(filters))
  examples = len(step.losses()[0])
  total = 0.0
  parts = np.array_split(np.arange(examples), min(micro_batches, examples))
  for number, rows in enumerate(parts):
    z = step.normal(key, step.t, number)
    noise = gamma * (1 + grown) * size * z
    found = step.gradients(noise, [rows] * len(step.parts))
    total = total + len(rows) / examples * found
  return total


CASES = cases(
  optax_sam.lpf_sgd,
  lpf_sgd,
  {'gamma': 0.1, 'micro_batches': 3, 'total_steps': 20, 'key': 2},
  {'micro_batches': 1, 'final_ratio': 4.0, 'total_steps': 6},
  {'micro_batches': 99},
)
