"""Measures of sharpness: how far the loss rises nearby, how strongly it curves.

All take `value_fn(params, *args)`, or with `batches` `value_fn(params, *args,
batch)`, averaged over the rows of all batches. Use evaluation mode, fixed data
without augmentation, and float32 or wider. Report the number of examples and
the radius with every value. **A mean of maxima over batches is not a maximum
over all data**; only `per_batch` gives the former. Batches are measured one at
a time, with one or two vectors of the parameters' size unless stated otherwise.
"""

from optax_sam.sharpness.adaptive import (
  adaptive_sharpness,
  average_adaptive_sharpness,
)
from optax_sam.sharpness.eigenvalues import top_eigenvalue, top_eigenvalues
from optax_sam.sharpness.neighborhood import epsilon_sharpness, sam_sharpness
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
