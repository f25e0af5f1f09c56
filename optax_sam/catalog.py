"""The catalog: one row for each method.

Tables of the documentation, the command `optax-sam methods`, the trainer, the
benchmarks and the generic tests read the methods from here.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import optax_sam
import optax_sam.lora


@dataclasses.dataclass(frozen=True)
class Paper:
  """Where a method was published.

  Attributes:
    authors: as in a citation, 'Foret et al.'.
    year: year of publication, or of the preprint.
    arxiv: number of the preprint.
  """

  authors: str
  year: int
  arxiv: str

  @property
  def link(self) -> str:
    """Address of the preprint."""
    return f'https://arxiv.org/abs/{self.arxiv}'

  def __str__(self) -> str:
    return f'{self.authors}, {self.year}'


@dataclasses.dataclass(frozen=True)
class Method:
  """One method. Texts are Markdown.

  Attributes:
    function: the public function that builds it.
    title: its name in the paper.
    paper: where it was published.
    group: the table in which it is listed, a key of `GROUPS`.
    gradients: gradients per step, `s` the fraction of steps that take an ascent
      step. '(+ 1/3)' is a forward pass that computes the loss at the
      unperturbed parameters, if that loss is used.
    use_when: completes 'Use it when'.
    place: placement relative to the base optimizer. 'chain': before it in
      `optax.chain`; 'after': after it; 'wraps': takes it as an argument;
      'replaces': is an optimizer; 'loss': an auxiliary loss; 'outside': called
      outside of the optimizer; 'adapters': trains low-rank adapters.
    state: its state, without counters, metrics and the state of the base
      optimizer.
    needs: arguments of `update` other than `params`. 'value_fn': `value_fn` or
      `grad_fn`; 'loss': the same, and `grad_fn` must return the loss too;
      'examples': `per_example_value_fn` and `batch`; '': nothing.
    collectives: trees of the size of the gradient that are averaged over
      devices beyond the one of data-parallel SGD, with `sync_ascent=False` and
      with `sync_ascent=True`.
    radius: name of the argument that is the size of the perturbation; None if
      nothing is perturbed.
    example: values of the arguments without a default, other than the base
      optimizer. One of them is the radius if it has no default.
    unverified: what could not be checked against the paper.
  """

  function: Callable[..., Any]
  title: str
  paper: Paper
  use_when: str
  group: str = 'every step'
  gradients: str = '2'
  place: Literal[
    'chain', 'wraps', 'replaces', 'after', 'loss', 'outside', 'adapters'
  ] = 'chain'
  state: str = 'none'
  needs: Literal['value_fn', 'examples', 'loss', ''] = 'value_fn'
  collectives: tuple[str, str] = ('none', '1 a step')
  radius: str | None = 'rho'
  example: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  unverified: str = ''

  @property
  def name(self) -> str:
    """Public name of the function."""
    return self.function.__name__

  @property
  def path(self) -> str:
    """Public name with its module."""
    package = 'optax_sam.lora' if self.place == 'adapters' else 'optax_sam'
    return f'{package}.{self.name}'

  @property
  def is_transformation(self) -> bool:
    """Whether it is a gradient transformation for any model."""
    return self.place in ('chain', 'wraps', 'replaces', 'after')

  @property
  def static(self) -> tuple[str, ...]:
    """Arguments that shape the compiled function."""
    return getattr(self.function, 'static_args', ())

  @property
  def family(self) -> str:
    """Name of the file that defines it, without its ending."""
    return self.function.__module__.rpartition('.')[2]


# Groups of methods, in the order of the tables, and what they have in common.
GROUPS = {
  'every step': 'The perturbed gradient at every step, over all examples.',
  'one gradient': 'One gradient a step, at the perturbed parameters.',
  'some steps': 'The perturbed gradient at some steps.',
  'some examples': 'Gradients over some of the examples.',
  'wraps or replaces the optimizer': (
    'Methods that take the base optimizer as an argument or replace it.'
  ),
  'noise and averages': (
    'Placed after the base optimizer, or called outside of it (`swad`).'
  ),
  'auxiliary losses': 'Losses that you add to yours.',
  'low-rank adapters': (
    'For fine-tuning with low-rank adapters; import `optax_sam.lora`.'
  ),
}

_ONE_GRADIENT = 'one gradient'
_SOME_STEPS = 'some steps'
_SOME_EXAMPLES = 'some examples'
_OPTIMIZERS = 'wraps or replaces the optimizer'
_AFTER = 'noise and averages'
_LOSSES = 'auxiliary losses'
_ADAPTERS = 'low-rank adapters'

_LOOK_SAM = Paper('Liu et al.', 2022, '2203.02714')
_AE_SAM = Paper('Jiang et al.', 2023, '2304.14647')
_SPARSE_SAM = Paper('Mi et al.', 2022, '2210.05177')
_WSAM = Paper('Yue et al.', 2023, '2305.15817')
_SAF = Paper('Du et al.', 2022, '2205.14083')

_AT_ASCENTS = ('1 an ascent step', '1 an ascent step')
_NO_NORM = ('none, no norm', 'none, no norm')
_NOTHING_AVERAGED = ('none', 'not offered')
_READ_ONLY = 'agreement with a run: the published code was read, not run'

_ROWS = (
  Method(
    optax_sam.sam,
    title='SAM',
    paper=Paper('Foret et al.', 2021, '2010.01412'),
    gradients='2 (1 + `ascent_steps`)',
    use_when='you want the method that papers compare with, without state',
  ),
  Method(
    optax_sam.asam,
    title='ASAM',
    paper=Paper('Kwon et al.', 2021, '2102.11600'),
    use_when='weights or layers differ much in scale',
    unverified='the rule, known from the author, not read in the paper',
  ),
  Method(
    optax_sam.friendly_sam,
    title='Friendly SAM (F-SAM)',
    paper=Paper('Li et al.', 2024, '2403.12350'),
    use_when='batches are small or gradients are noisy',
    state='average of gradients',
    collectives=('1 a step', '1 a step'),
    unverified='when the average is updated: known from restatements only',
  ),
  Method(
    optax_sam.gsam,
    title='GSAM',
    paper=Paper('Zhuang et al.', 2022, '2203.08065'),
    use_when='the gap between perturbed and unperturbed loss should shrink too',
  ),
  Method(
    optax_sam.gradient_norm_penalty,
    title='Gradient norm penalty (GNP)',
    paper=Paper('Zhao et al.', 2022, '2202.03599'),
    use_when='you want to penalize the norm of the gradient',
  ),
  Method(
    optax_sam.wsam,
    title='WSAM',
    paper=_WSAM,
    use_when='sharpness should be a penalty with its own weight',
  ),
  Method(
    optax_sam.fisher_sam,
    title='Fisher SAM',
    paper=Paper('Kim et al.', 2022, '2206.04920'),
    use_when='perturbations should be measured by Fisher information',
    unverified='the defaults; the squared gradient of the batch instead of the '
    'squared per-example gradients',
  ),
  Method(
    optax_sam.unnormalized_sam,
    title='Unnormalized SAM (USAM)',
    paper=Paper('Andriushchenko and Flammarion', 2022, '2206.06232'),
    use_when='you study SAM without normalization, near a minimum',
    example={'rho': 0.05},
  ),
  Method(
    optax_sam.le_sam,
    title='LE-SAM',
    paper=Paper('Wang et al.', 2026, '2605.10183'),
    use_when='gradients shrink during training and the radius should grow',
    radius='sigma',
  ),
  Method(
    optax_sam.cr_sam,
    title='CR-SAM',
    paper=Paper('Wu et al.', 2024, '2312.13555'),
    gradients='3',
    use_when='you can afford a third gradient, to penalize curvature',
    collectives=('none', '2 a step, 1 joined'),
    unverified='how the rule follows from the trace that the paper penalizes',
  ),
  Method(
    optax_sam.eigen_sam,
    title='Eigen-SAM',
    paper=Paper('Luo et al.', 2024, '2501.12666'),
    use_when='you want to lower the top eigenvalue of the Hessian',
    state='one direction',
    collectives=('1 a product', '1 a step, 1 a product'),
    example={'key': 0},
    unverified='whether the defaults, of the run of the authors, are those of '
    'the paper',
  ),
  Method(
    optax_sam.frob_sam,
    title='Frob-SAM',
    paper=Paper('Tahmasebi et al.', 2024, '2406.03682'),
    gradients='1 + `num_samples`',
    use_when='you want flatness in random directions, not in the worst one',
    state='PRNG key',
    needs='loss',
    collectives=('none', '1 a sample'),
    example={'key': 0},
  ),
  Method(
    optax_sam.vasso,
    title='VaSSO',
    paper=Paper('Li, Giannakis', 2023, '2309.15639'),
    use_when='batches are small and the ascent gradient has much noise',
    state='average of gradients',
    collectives=('1 a step, joined', '1 a step'),
  ),
  Method(
    optax_sam.stable_sam,
    title='StableSAM',
    paper=Paper('Tan et al.', 2024, '2401.07250'),
    use_when='SAM diverges at the learning rate of the base optimizer',
  ),
  Method(
    optax_sam.sagm,
    title='SAGM',
    paper=Paper('Wang et al.', 2023, '2303.10353'),
    use_when='you train on several domains, for one that you do not have',
  ),
  Method(
    optax_sam.gcsam,
    title='GCSAM',
    paper=Paper('Hassan et al.', 2025, '2501.11584'),
    use_when='your training centralizes gradients anyway',
    unverified='the rule, known from a restatement and the published code only',
  ),
  Method(
    optax_sam.adversarial_weight_perturbation,
    title='AWP',
    paper=Paper('Wu et al.', 2020, '2004.05884'),
    use_when='you train on adversarial examples',
    collectives=('none', '1 a step, split'),
    radius='gamma',
  ),
  Method(
    optax_sam.tsam,
    title='TSAM',
    paper=Paper('Li et al.', 2024, '2410.22656'),
    gradients='1 + 2 * `num_perturbations`',
    use_when='you can afford several perturbations a step',
    state='PRNG key',
    needs='loss',
    collectives=('none', '1 a perturbation'),
    example={'key': 0},
    unverified='the step in the paper, known from a restatement only',
  ),
  Method(
    optax_sam.sparse_sam_fisher,
    title='Sparse SAM, Fisher mask (SSAM-F)',
    paper=_SPARSE_SAM,
    use_when='you study which weights matter, by their Fisher information',
    state='mask',
    needs='examples',
    collectives=('1 a refresh', '1 a step, 1 a refresh'),
    example={'refresh_every': 100},
    unverified='whether the paper has the values of the published code',
  ),
  Method(
    optax_sam.sparse_sam_dynamic,
    title='Sparse SAM, dynamic mask (SSAM-D)',
    paper=_SPARSE_SAM,
    use_when='you study which weights matter, without per-example losses',
    state='mask, PRNG key',
    collectives=('1 a refresh', '1 a step'),
    example={'refresh_every': 100, 'total_steps': 1000, 'key': 0},
    unverified='whether the paper has the values of the published code',
  ),
  Method(
    optax_sam.sparse_sam_layers,
    title='Sparse SAM by layers',
    paper=_SPARSE_SAM,
    gradients='3/2',
    collectives=('none', '1 of the chosen leaves a step'),
    use_when='SAM is too slow, or you fine-tune the last layers most',
    unverified='the choice of whole layers, which is not from the paper',
  ),
  Method(
    optax_sam.z_sharp,
    title='ZSharp',
    paper=Paper('Yun', 2025, '2505.02369'),
    use_when='only the entries with the largest gradients should be perturbed',
    unverified='whether the paper means the radius of all leaves together, or '
    'of each leaf, as in the published code',
  ),
  Method(
    optax_sam.async_sam,
    title='AsyncSAM',
    paper=Paper('Jo et al.', 2025, '2503.11147'),
    gradients='2, in parallel',
    use_when='the hardware can compute two gradients at the same time',
    state='one direction',
    collectives=('1 a step, joined', '1 a step, without info'),
    unverified='the equation, known from second-hand accounts only',
  ),
  Method(
    optax_sam.momentum_sam,
    title='Momentum-SAM (MSAM)',
    paper=Paper('Becker et al.', 2024, '2401.12033'),
    group=_ONE_GRADIENT,
    gradients='1 (+ 1/3)',
    use_when='you can afford one gradient a step only',
    state='one direction',
    collectives=_NO_NORM,
  ),
  Method(
    optax_sam.lpf_sgd,
    title='LPF-SGD',
    paper=Paper('Bisla et al.', 2022, '2201.08025'),
    group=_ONE_GRADIENT,
    gradients='1 (+ 1/3)',
    use_when='you want one gradient a step, at randomly perturbed weights',
    state='PRNG key',
    needs='examples',
    collectives=_NO_NORM,
    radius='gamma',
    example={'total_steps': 1000, 'key': 0},
    unverified=_READ_ONLY,
  ),
  Method(
    optax_sam.late_sam,
    title='Late-phase SAM',
    paper=Paper('Zhou et al.', 2024, '2410.10373'),
    group=_SOME_STEPS,
    gradients='1, then 2',
    use_when='you know the length of the training and can spare little time',
    collectives=('none', '1 an ascent step'),
    example={'start': 900},
  ),
  Method(
    optax_sam.ss_sam,
    title='SS-SAM',
    paper=Paper('Zhao et al.', 2022, '2203.09962'),
    group=_SOME_STEPS,
    gradients='1 + s',
    use_when='you need a control for methods that skip steps by a policy',
    state='PRNG key',
    collectives=('none', '1 an ascent step'),
    example={'key': 0},
    unverified='the form of its schedules',
  ),
  Method(
    optax_sam.look_sam,
    title='LookSAM',
    paper=_LOOK_SAM,
    group=_SOME_STEPS,
    gradients='1 + 1/`period`',
    use_when='you can afford less than SAM and must know the cost in advance',
    state='one direction',
    collectives=_AT_ASCENTS,
  ),
  Method(
    optax_sam.look_layer_sam,
    title='Look-LayerSAM',
    paper=_LOOK_SAM,
    group=_SOME_STEPS,
    gradients='1 + 1/`period`',
    use_when='batches are large and each layer should have a radius',
    state='one direction',
    collectives=_AT_ASCENTS,
    unverified='the rule: three readings are offered',
  ),
  Method(
    optax_sam.ae_sam,
    title='AE-SAM',
    paper=_AE_SAM,
    group=_SOME_STEPS,
    gradients='1 + s',
    use_when='you want the gain of SAM with half of the perturbed gradients',
    state='two scalars',
    collectives=_AT_ASCENTS,
    example={'total_steps': 1000},
    unverified='the defaults and the initial variance',
  ),
  Method(
    optax_sam.ae_look_sam,
    title='AE-LookSAM',
    paper=_AE_SAM,
    group=_SOME_STEPS,
    gradients='1 + s',
    use_when='you can afford a perturbed gradient at 20 % of the steps',
    state='two scalars, one direction',
    collectives=_AT_ASCENTS,
    example={'total_steps': 1000},
    unverified='the defaults and the exact algorithm',
  ),
  Method(
    optax_sam.k_sam,
    title='K-SAM',
    paper=Paper('Ni et al.', 2022, '2210.12864'),
    group=_SOME_EXAMPLES,
    gradients='1/3 + `ascent` + `descent`',
    use_when='losses differ much between examples and labels are clean',
    needs='examples',
    example={'ascent': 1 / 3, 'descent': 1 / 3},
    unverified='the sizes; the mean, not the sum, over the examples',
  ),
  Method(
    optax_sam.esam,
    title='ESAM',
    paper=Paper('Du et al.', 2022, '2110.03141'),
    group=_SOME_EXAMPLES,
    gradients='4/3 + `gamma`',
    use_when='you need a control for K-SAM that ranks by the rise of the loss',
    state='PRNG key',
    needs='examples',
    example={'key': 0},
    unverified='whether a fraction `beta` is kept or dropped; the factor of '
    'the radius',
  ),
  Method(
    optax_sam.ordered_sgd,
    title='Ordered SGD',
    paper=Paper('Kawaguchi and Lu', 2020, '1907.04371'),
    group=_SOME_EXAMPLES,
    gradients='1/3 + `k`',
    use_when='you need a control for K-SAM without a perturbation',
    needs='examples',
    collectives=_NOTHING_AVERAGED,
    radius=None,
    example={'k': 0.5},
  ),
  Method(
    optax_sam.subset_sam,
    title='SAM with a subset of the batch',
    paper=Paper('Bahri et al.', 2022, '2110.08529'),
    group=_SOME_EXAMPLES,
    gradients='1 + `fraction` (+ 1/3)',
    use_when='an approximate ascent gradient is enough',
    state='none (PRNG key if given)',
    needs='examples',
    unverified='which part of the batch is used',
  ),
  Method(
    optax_sam.m_sam,
    title='m-SAM',
    paper=Paper('Foret et al.', 2021, '2010.01412'),
    group=_SOME_EXAMPLES,
    gradients='2 (+ 1/3)',
    use_when='a large batch should be perturbed in small parts, on any devices',
    needs='examples',
    collectives=('none', '1 a part'),
    example={'micro_batch_size': 32},
  ),
  Method(
    optax_sam.wsam_decoupled,
    title='WSAM, decoupled',
    paper=_WSAM,
    group=_OPTIMIZERS,
    use_when='momentum or preconditioning should not include the sharpness',
    place='wraps',
    collectives=('1 a step, joined', '1 a step'),
    example={'learning_rate': 0.1},
  ),
  Method(
    optax_sam.lookbehind,
    title='Lookbehind-SAM',
    paper=Paper('Mordido et al.', 2024, '2307.16704'),
    group=_OPTIMIZERS,
    gradients='1 + `steps`',
    use_when='you can afford a third gradient and want larger radii',
    place='wraps',
    collectives=('steps - 1, joined', 'steps a step'),
  ),
  Method(
    optax_sam.sampa,
    title='SAMPa',
    paper=Paper('Xie et al.', 2024, '2410.10683'),
    group=_OPTIMIZERS,
    gradients='2, in parallel (+ 1/3)',
    use_when='two devices or free capacity can compute two gradients at once',
    place='wraps',
    state='one direction, one batch',
    needs='examples',
    collectives=('1 a step, no norm', '1 a step, no norm'),
    example={
      'batch_like': {
        'x': jax.ShapeDtypeStruct((8, 3), jnp.float32),
        'y': jax.ShapeDtypeStruct((8,), jnp.float32),
      }
    },
    unverified=_READ_ONLY,
  ),
  Method(
    optax_sam.b_sam,
    title='bSAM',
    paper=Paper('Moellenhoff and Khan', 2023, '2210.01620'),
    group=_OPTIMIZERS,
    gradients='2 (+ 1/3)',
    use_when='you want SAM with the scaling of Adam, or variances of weights',
    place='replaces',
    state='two moments, PRNG key',
    needs='examples',
    collectives=('1 a step, joined', 'not offered'),
    example={'num_data': 1000, 'key': 0},
  ),
  Method(
    optax_sam.entropy_sgd,
    title='Entropy-SGD',
    paper=Paper('Chaudhari et al.', 2017, '1611.01838'),
    group=_OPTIMIZERS,
    gradients='1',
    use_when='gradients are cheap: one update of the outer iterate takes 20',
    place='replaces',
    state='two points, momentum, PRNG key',
    needs='',
    collectives=('none, no info', 'not offered'),
    radius=None,
    example={'key': 0},
    unverified=_READ_ONLY,
  ),
  Method(
    optax_sam.anti_pgd,
    title='Anti-PGD',
    paper=Paper('Orvieto et al.', 2022, '2202.02831'),
    group=_AFTER,
    gradients='1',
    use_when='you want a lower trace of the Hessian at one gradient a step',
    place='after',
    state='PRNG key',
    needs='',
    collectives=_NOTHING_AVERAGED,
    radius=None,
    example={'sigma': 0.01, 'key': 0},
    unverified='`sigma`; whether the noise is removed before evaluation',
  ),
  Method(
    optax_sam.swa,
    title='SWA',
    paper=Paper('Izmailov et al.', 2018, '1803.05407'),
    group=_AFTER,
    gradients='1',
    use_when='runs are long and the learning rate stays high at the end',
    place='after',
    state='average of the weights',
    needs='',
    collectives=_NOTHING_AVERAGED,
    radius=None,
    example={'start': 1000},
  ),
  Method(
    optax_sam.swad,
    title='SWAD',
    paper=Paper('Cha et al.', 2021, '2102.08604'),
    group=_AFTER,
    gradients='1',
    use_when='you validate often and can spare examples for it',
    place='outside',
    state='three averages of the weights',
    needs='',
    collectives=_NOTHING_AVERAGED,
    radius=None,
    unverified='the indices in the paper; the result of a run that never '
    'converges',
  ),
  Method(
    optax_sam.saf_loss,
    title='SAF',
    paper=_SAF,
    group=_LOSSES,
    gradients='1',
    use_when='you train many epochs and can store the logits of all examples',
    place='loss',
    state='`lag` times the logits of every training example',
    needs='',
    collectives=_NOTHING_AVERAGED,
    radius=None,
    unverified='`tau**2` and the first epoch: the paper and the published code '
    'differ',
  ),
  Method(
    optax_sam.mesa_loss,
    title='MESA',
    paper=_SAF,
    group=_LOSSES,
    gradients='4/3',
    use_when='you cannot store the logits of all examples, as SAF needs',
    place='loss',
    state='average of the weights',
    needs='',
    collectives=_NOTHING_AVERAGED,
    radius=None,
    unverified='`tau**2`: the paper and the published code differ; the first '
    'epoch, known from the published code',
  ),
  Method(
    optax_sam.lora.flat_noise,
    title='Flat-LoRA',
    paper=Paper('Li et al.', 2025, '2409.14396'),
    group=_ADAPTERS,
    gradients='1',
    use_when='the merged weights should lie in a flat region, at one gradient',
    place='adapters',
    needs='',
    collectives=_NOTHING_AVERAGED,
    radius='sigma',
    example={
      'merged': np.ones((4, 4), np.float32),
      'key': 0,
      'step': 0,
      'total_steps': 1000,
    },
  ),
  Method(
    optax_sam.lora.bi_lora,
    title='Bi-LoRA',
    paper=Paper('Liu et al.', 2026, '2508.19564'),
    group=_ADAPTERS,
    gradients='1',
    use_when='the perturbation should follow the gradient, for one gradient a '
    'step',
    place='adapters',
    state='base optimizer of the second pair',
    needs='',
    collectives=_NOTHING_AVERAGED,
    example={'labels': {'lora': 'lora', 'second': 'ascent'}, 'rho': 0.05},
    unverified="the order of ascent and weight decay: the authors' program "
    'could not be read',
  ),
)

METHODS: dict[str, Method] = {row.name: row for row in _ROWS}
