"""The methods that are compared, all with AdamW as the base optimizer."""

import dataclasses
from collections.abc import Callable

import optax

import optax_sam
from optax_sam import lora

_LABELS = {'kernels': 'frozen', 'lora': 'lora', 'second': 'ascent'}


@dataclasses.dataclass(frozen=True)
class Method:
  """One method.

  Attributes:
    name: its name in tables.
    optimizer: from the base optimizer and the radius to the optimizer.
    radii: values among which the radius is chosen, in the unit of the method.
    parts: parts of the model that it differentiates: 'lora', the adapters,
      'second', the second pair of adapters, 'kernels', the frozen kernels.
    is_functional: whether the perturbed gradient is that of Functional-SAM.
    has_noise: whether frozen kernels have noise of size `radius`.
  """

  name: str
  optimizer: Callable[..., optax.GradientTransformation]
  radii: tuple[float, ...] = (0.0,)
  parts: tuple[str, ...] = ('lora',)
  is_functional: bool = False
  has_noise: bool = False


def _alone(base, _):
  return base


def _sam(base, rho):
  return optax.chain(optax_sam.sam(rho), base)


def _sam_on_kernels(base, rho):
  labels = {part: _LABELS[part] for part in ('kernels', 'lora')}
  mask = optax_sam.trainable(labels, frozen='frozen', perturbed='frozen')
  parts = {'lora': base, 'frozen': optax.set_to_zero()}
  return optax.chain(
    optax_sam.sam(rho, mask=mask), optax.partition(parts, labels)
  )


def _bi_lora(base, rho):
  labels = {part: _LABELS[part] for part in ('lora', 'second')}
  return lora.bi_lora(base, labels, rho=rho)


METHODS = {
  method.name: method
  for method in (
    Method('AdamW', _alone),
    Method('SAM on adapters', _sam, (0.01, 0.05, 0.2)),
    Method(
      'SAM on frozen kernels',
      _sam_on_kernels,
      (0.05, 0.2, 0.8),
      parts=('kernels', 'lora'),
    ),
    Method('Functional-SAM', _sam, (0.01, 0.05, 0.2), is_functional=True),
    Method('Flat-LoRA', _alone, (0.05, 0.1, 0.2), has_noise=True),
    Method('Bi-LoRA', _bi_lora, (0.01, 0.05, 0.2), parts=('lora', 'second')),
  )
}
