"""Averages of the parameters along a run.

What they have in common:

* Averages are float32, or float64 for such parameters. Leaves that are no
  floating-point numbers have none.
* Parameters that aren't finite enter none.
* The running statistics of batch norm belong to no parameters. They are not
  averaged: compute those of the average anew, with
  `optax_sam.flax.reestimate_batch_norm`.
"""
