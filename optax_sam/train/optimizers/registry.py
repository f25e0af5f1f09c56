"""The registry of methods: what the trainer and its table know of each.

A new method is one more row; nothing else in the trainer names a method.
"""

import functools

import optax_sam
from optax_sam.train.optimizers import accuracy_schedule, weight_averaging
from optax_sam.train.optimizers.method import Method

# The authors' rule. What it leaves open, and where their programs differ:
# - It doesn't say how training accuracy is measured. One program passes over
#   the training set after each epoch, another averages over the batches of the
#   epoch as it trains on them, both in training mode. Here: after the epoch, in
#   evaluation mode; see the class for why.
# - They round k down; a fraction of the batch is rounded to the nearest here.
# - They also halve the learning rate when k falls at 99.5 %, which the rule
#   doesn't mention; here all methods of a comparison share one schedule.
_SHARE_OF_LARGEST_LOSSES = accuracy_schedule.ByTrainingAccuracy(
  1.0, ((0.8, 1 / 2), (0.9, 1 / 4), (0.95, 1 / 8), (0.995, 1 / 16))
)


METHODS: dict[str, Method] = {
  'sam': Method(
    factory=optax_sam.sam,
    gradients='2',
    state='none',
    paper='Foret et al., 2021, arXiv 2010.01412',
  ),
  'asam': Method(
    factory=optax_sam.asam,
    gradients='2',
    state='none',
    paper='Kwon et al., 2021, arXiv 2102.11600',
  ),
  'sam_on': Method(
    factory=functools.partial(
      optax_sam.sam, rho=0.5, mask=optax_sam.norm_layers_only
    ),
    gradients='2',
    state='none',
    paper='Mueller et al., 2023, arXiv 2306.04226',
  ),
  'friendly_sam': Method(
    factory=optax_sam.friendly_sam,
    gradients='2',
    state='average of gradients',
    paper='Li et al., 2024, arXiv 2403.12350',
  ),
  'gsam': Method(
    factory=optax_sam.gsam,
    gradients='2',
    state='none',
    paper='Zhuang et al., 2022, arXiv 2203.08065',
  ),
  'gradient_norm_penalty': Method(
    factory=optax_sam.gradient_norm_penalty,
    gradients='2',
    state='none',
    paper='Zhao et al., 2022, arXiv 2202.03599',
  ),
  'wsam': Method(
    factory=optax_sam.wsam,
    gradients='2',
    state='none',
    paper='Yue et al., 2023, arXiv 2305.15817',
  ),
  'wsam_decoupled': Method(
    factory=optax_sam.wsam_decoupled,
    gradients='2',
    state='none',
    paper='Yue et al., 2023, arXiv 2305.15817',
    place='around',
  ),
  'lookbehind': Method(
    factory=optax_sam.lookbehind,
    gradients='1 + steps',
    state='none',
    paper='Mordido et al., 2024, arXiv 2307.16704',
    place='around',
    base_steps='steps',
  ),
  'sampa': Method(
    factory=optax_sam.sampa,
    gradients='2, side by side',
    state='one direction, one batch',
    paper='Xie et al., 2024, arXiv 2410.10683',
    uses_gradient=False,
    place='around',
  ),
  'b_sam': Method(
    factory=optax_sam.b_sam,
    gradients='2',
    state='two moments, PRNG key',
    paper='Moellenhoff, Khan, 2023, arXiv 2210.01620',
    uses_gradient=False,
    place='instead',
  ),
  'entropy_sgd': Method(
    factory=optax_sam.entropy_sgd,
    gradients='1',
    state='two points, momentum, PRNG key',
    paper='Chaudhari et al., 2017, arXiv 1611.01838',
    place='instead',
    reports=False,
    solution=optax_sam.outer_params,
  ),
  'fisher_sam': Method(
    factory=optax_sam.fisher_sam,
    gradients='2',
    state='none',
    paper='Kim et al., 2022, arXiv 2206.04920',
  ),
  'unnormalized_sam': Method(
    factory=optax_sam.unnormalized_sam,
    gradients='2',
    state='none',
    paper='Andriushchenko, Flammarion, 2022, arXiv 2206.06232',
    defaults={'rho': 0.05},
  ),
  'le_sam': Method(
    factory=optax_sam.le_sam,
    gradients='2',
    state='none',
    paper='Wang et al., 2026, arXiv 2605.10183',
  ),
  'cr_sam': Method(
    factory=optax_sam.cr_sam,
    gradients='3',
    state='none',
    paper='Wu et al., 2024, arXiv 2312.13555',
  ),
  'eigen_sam': Method(
    factory=optax_sam.eigen_sam,
    gradients='2',
    state='one direction',
    paper='Luo et al., 2024, arXiv 2501.12666',
  ),
  'frob_sam': Method(
    factory=optax_sam.frob_sam,
    gradients='1 + num_samples',
    state='PRNG key',
    paper='Tahmasebi et al., 2024, arXiv 2406.03682',
  ),
  'sparse_sam_fisher': Method(
    factory=optax_sam.sparse_sam_fisher,
    gradients='2',
    state='mask',
    paper='Mi et al., 2022, arXiv 2210.05177',
    takes_single_examples=True,
  ),
  'sparse_sam_dynamic': Method(
    factory=optax_sam.sparse_sam_dynamic,
    gradients='2',
    state='mask, PRNG key',
    paper='Mi et al., 2022, arXiv 2210.05177',
  ),
  'z_sharp': Method(
    factory=optax_sam.z_sharp,
    gradients='2',
    state='none',
    paper='Yun, 2025, arXiv 2505.02369',
  ),
  'async_sam': Method(
    factory=optax_sam.async_sam,
    gradients='2, side by side',
    state='one direction',
    paper='Jo et al., 2025, arXiv 2503.11147',
  ),
  'momentum_sam': Method(
    factory=optax_sam.momentum_sam,
    gradients='1',
    state='one direction',
    paper='Becker et al., 2024, arXiv 2401.12033',
    uses_gradient=False,
  ),
  'lpf_sgd': Method(
    factory=optax_sam.lpf_sgd,
    gradients='1',
    state='PRNG key',
    paper='Bisla et al., 2022, arXiv 2201.08025',
    uses_gradient=False,
  ),
  'anti_pgd': Method(
    factory=optax_sam.anti_pgd,
    gradients='1',
    state='PRNG key',
    paper='Orvieto et al., 2022, arXiv 2202.02831',
    defaults={'sigma': 0.01},
    place='after',
    reports=False,
    solution=optax_sam.without_noise,
  ),
  'swa': Method(
    factory=weight_averaging.swa,
    gradients='1',
    state='average of weights',
    paper='Izmailov et al., 2018, arXiv 1803.05407',
    place='after',
    reports=False,
    solution=optax_sam.averaged_params,
  ),
  'swad': Method(
    factory=weight_averaging.swad,
    gradients='1',
    state='three averages of weights',
    paper='Cha et al., 2021, arXiv 2102.08604',
    place='beside',
    reports=False,
  ),
  'ss_sam': Method(
    factory=optax_sam.ss_sam,
    gradients='1 + s',
    state='PRNG key',
    paper='Zhao et al., 2022, arXiv 2203.09962',
    skips=True,
  ),
  'look_sam': Method(
    factory=optax_sam.look_sam,
    gradients='1 + 1/period',
    state='one direction',
    paper='Liu et al., 2022, arXiv 2203.02714',
    skips=True,
  ),
  'look_layer_sam': Method(
    factory=optax_sam.look_layer_sam,
    gradients='1 + 1/period',
    state='one direction',
    paper='Liu et al., 2022, arXiv 2203.02714',
    skips=True,
  ),
  'ae_sam': Method(
    factory=optax_sam.ae_sam,
    gradients='1 + s',
    state='two moments, scalars',
    paper='Jiang et al., 2023, arXiv 2304.14647',
    skips=True,
  ),
  'ae_look_sam': Method(
    factory=optax_sam.ae_look_sam,
    gradients='1 + s',
    state='two moments, one direction',
    paper='Jiang et al., 2023, arXiv 2304.14647',
    skips=True,
  ),
  'k_sam': Method(
    factory=optax_sam.k_sam,
    gradients='1/3 + ascent + descent',
    state='none',
    paper='Ni et al., 2022, arXiv 2210.12864',
    uses_gradient=False,
    defaults={'ascent': 1 / 3, 'descent': 1 / 3},
  ),
  'esam': Method(
    factory=optax_sam.esam,
    gradients='4/3 + gamma',
    state='PRNG key',
    paper='Du et al., 2022, arXiv 2110.03141',
  ),
  'ordered_sgd': Method(
    factory=optax_sam.ordered_sgd,
    gradients='1/3 + k',
    state='none',
    paper='Kawaguchi, Lu, 2020, arXiv 1907.04371',
    uses_gradient=False,
    defaults={'k': _SHARE_OF_LARGEST_LOSSES},
  ),
  'subset_sam': Method(
    factory=optax_sam.subset_sam,
    gradients='1 + fraction',
    state='PRNG key',
    paper='Bahri et al., 2022, arXiv 2110.08529',
    uses_gradient=False,
  ),
  'm_sam': Method(
    factory=optax_sam.m_sam,
    gradients='2',
    state='none',
    paper='Foret et al., 2021, arXiv 2010.01412',
    uses_gradient=False,
    defaults={'micro_batch_size': 32},
  ),
  'saf': Method(
    factory=optax_sam.saf_loss,
    gradients='1',
    state='logits of all examples',
    paper='Du et al., 2022, arXiv 2205.14083',
    place='loss',
    reports=False,
  ),
  'mesa': Method(
    factory=optax_sam.mesa_loss,
    gradients='4/3',
    state='average of weights',
    paper='Du et al., 2022, arXiv 2205.14083',
    place='loss',
    reports=False,
  ),
}
