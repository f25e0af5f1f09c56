"""SWA: the mean of the parameters after some steps."""

import numpy as np


def swa(path, start, every, steps):
  """Returns the mean after a number of steps, or parameters if it is empty."""
  entered = [s - 1 for s in range(start, steps + 1) if (s - start) % every == 0]
  path = np.asarray(path, np.float64)
  mean = path[entered].mean(axis=0) if entered else path[steps - 1]
  return mean, len(entered)
