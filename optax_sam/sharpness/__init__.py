"""Measures of sharpness: how far the loss rises nearby, how strongly it curves.

All take the loss as `value_fn(params, *args)`, or `value_fn(params, *args,
batch)` with `batches`, over which it is averaged by their numbers of rows. Call
them in evaluation mode, on fixed data without augmentation, in float32 or
wider; and give the number of examples and the radius with every figure. **A
mean of maxima over batches isn't a maximum over all data**: the latter is what
is measured unless `per_batch` is said.

Batches go through one at a time, from the host, where XLA's CPU backend is at
its fastest; beside the parameters they need a gradient and a perturbation or
two. What needs more says how much.
"""

from optax_sam.sharpness.adaptive import (
  adaptive_sharpness,
  average_adaptive_sharpness,
)
from optax_sam.sharpness.ascent import sam_sharpness
from optax_sam.sharpness.box import epsilon_sharpness
from optax_sam.sharpness.eigenvalues import top_eigenvalue, top_eigenvalues
from optax_sam.sharpness.spectrum import (
  Density,
  Estimate,
  hessian_trace,
  spectral_density,
)

__all__ = [
  'Density',
  'Estimate',
  'adaptive_sharpness',
  'average_adaptive_sharpness',
  'epsilon_sharpness',
  'hessian_trace',
  'sam_sharpness',
  'spectral_density',
  'top_eigenvalue',
  'top_eigenvalues',
]
