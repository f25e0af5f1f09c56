"""Published methods: most are a few lines over `sharpness_aware`.

`optax_sam.catalog` has a row for each of them. The conventions that they share
are in docs/conventions.md: norms, gradients that are not finite, masks, costs,
weight decay, batch norm, dropout, loss scaling, precision, and what they
average over devices.
"""
