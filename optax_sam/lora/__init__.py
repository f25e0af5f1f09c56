r"""Sharpness-aware fine-tuning with low-rank adapters: Flat-LoRA and Bi-LoRA.

A layer with the frozen kernel :math:`W`, of shape (inputs, outputs), and the
adapters :math:`A` and :math:`B` has the merged kernel :math:`W + s A B`. The
functions take arrays of any framework, and all but `merge` pytrees of them.
"""

from optax_sam.lora.adapter_pairs import bi_lora, clip_products, product_norm
from optax_sam.lora.flat_lora import flat_noise, merge

__all__ = ['bi_lora', 'clip_products', 'flat_noise', 'merge', 'product_norm']
