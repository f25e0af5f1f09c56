"""SWAD, computed at the end from all parameters and losses."""

import math

import numpy as np


def swad(segments, losses, n_converge, n_tolerance, tolerance):
  """Returns (first, last, mean) by the literal rule."""
  loss = dict(enumerate(losses, start=1))

  def window(end, size):
    return [loss[k] for k in range(end - size + 1, end + 1)]

  converged = [
    i
    for i in range(n_converge, len(losses) + 1)
    if all(map(math.isfinite, window(i, n_converge)))
    and loss[i - n_converge + 1] == min(window(i, n_converge))
  ]
  if not converged:
    first = last = len(losses)
  else:
    i = converged[0]
    first = i - n_converge + 1
    threshold = (1 + tolerance) * sum(window(i, n_converge)) / n_converge
    ends = [
      j
      for j in range(first + n_tolerance - 1, len(losses) + 1)
      if min(window(j, n_tolerance)) > threshold
    ]
    below = [k for k in loss if k >= first and loss[k] <= threshold]
    last = ends[0] - n_tolerance if ends else below[-1]
  members = [w for k in range(first, last + 1) for w in segments[k - 1]]
  return (first, last) if converged else (0, 0), np.mean(members, axis=0)
