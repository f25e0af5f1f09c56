"""Methods that take the second gradient at every step, over all examples."""

from typing import Any, Literal

import optax

from optax_sam import masking, perturbations, validation
from optax_sam.sharpness_aware import sharpness_aware


def sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  p: float = 2,
  ascent_steps: int = 1,
  mask: masking.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Sharpness-aware minimization (SAM): descends from a worse point close by.

  With `g` the gradient at the parameters `w`::

    epsilon = rho * g / (norm(g) + 1e-12)         # p = inf: rho * sign(g)
    u       = gradient at w + epsilon             # epsilon held constant

  With `ascent_steps = k` above 1, `epsilon` is the `delta` that k such steps
  reach from 0, with `h` the gradient at `w + delta`, at first `g`::

    delta = delta + rho * h / (norm(h) + 1e-12)  # p = inf: rho * sign(h)
    delta = delta * min(1, rho / norm(delta))  # p = inf: clipped to +-rho

  Six published programs agree with one another and with this rule; the
  appendix of the paper prints a squared norm in one place, against its own
  equation 2. Differentiating through `epsilon` gave the authors worse results.
  The length of several steps and the projection are those of Andriushchenko
  and Flammarion (2022, arXiv 2206.06232); `optax.contrib.sam` doesn't project.

  Args:
    rho: radius in the unit of the parameters, a scalar of at least 0, or a
      schedule of it by the step. 0.05 is the authors' default, and theirs for
      ImageNet; their grid runs from 0.01 to 0.5, and noisy labels want 0.1.
    p: 2 or infinity, the norm in which `epsilon` has length `rho`. 2 is that
      of the six programs.
    ascent_steps: number of ascent steps, at least 1; those programs take 1.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 1 + `ascent_steps` gradients.
    Keeps nothing.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

  References:
    Foret, Kleiner, Mobahi, Neyshabur, `Sharpness-Aware Minimization for
    Efficiently Improving Generalization <https://arxiv.org/abs/2010.01412>`_,
    ICLR 2021. Smaller parts of the batch with an `epsilon` of their own
    generalized better there: see `m_sam`.

  >>> import jax, jax.numpy as jnp, optax, optax_sam
  >>> tx = optax.chain(optax_sam.sam(rho=0.5), optax.sgd(0.1))
  >>> loss = lambda w: jnp.sum(w**2)
  >>> w = jnp.array([3.0, 4.0])
  >>> updates, state = tx.update(
  ...   jax.grad(loss)(w), tx.init(w), w, value_fn=loss
  ... )
  >>> [round(x, 3) for x in updates.tolist()]  # -0.1 * 2 * (w + 0.5 * w / 5)
  [-0.66, -0.88]
  """
  validation.check_static_integer('ascent_steps', ascent_steps)
  return sharpness_aware(
    perturbations.ascend_repeatedly(rho, ascent_steps, p=p),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )


def asam(
  rho: optax.ScalarOrSchedule = 0.5,
  *,
  eta: float = 0.01,
  scaled: masking.Mask = None,
  mask: masking.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Adaptive SAM (ASAM): a radius relative to the size of the weights.

  With `g` the gradient at `w`, `T = abs(w) + eta` on scaled leaves and `T = 1`
  on the others::

    epsilon = rho * T^2 * g / (norm(T * g) + 1e-12)   # norm(epsilon / T) = rho
    u       = gradient at w + epsilon

  Published programs give different numbers. The default is the rule of the
  authors' program, which scales the parameters whose name contains "weight";
  here, all but those whose last name is `bias`, `b`, `beta` or `offset`, so
  that a weight called `w` is scaled, which in their program gets plain SAM.
  `asam(2.0, eta=0.0, scaled=True)` is the widely used variant of davda54/sam,
  which doesn't perturb a bias that is zero; `scaled=True` alone is
  dbahri/universal_sam. `rho * abs(w) * g / norm(g)`, also called adaptive in
  places, is not ASAM and not offered. The paper's own rule and its `eta` could
  not be confirmed.

  Args:
    rho: radius relative to the weights, a scalar of at least 0, or a schedule
      of it by the step; usable from 0.1 to 2. 0.5 is the default of the
      authors' class and their README's value for CIFAR-10 (CIFAR-100: 1.0).
    eta: added to the size of the weights, at least 0. 0.01 is the default of
      the authors' class; their example script passes 0.
    scaled: which leaves are scaled: a bool, a prefix tree of bools or a
      function from the parameters to one; None goes by their names.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 2 gradients. Keeps nothing.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

  References:
    Kwon, Kim, Park, Choi, `ASAM: Adaptive Sharpness-Aware Minimization for
    Scale-Invariant Learning of Deep Neural Networks
    <https://arxiv.org/abs/2102.11600>`_, ICML 2021.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.asam(rho=0.5, eta=0.0)
  >>> w = jnp.array([3.0, 4.0])
  >>> u, _ = tx.update(jnp.ones(2), tx.init(w), w, grad_fn=lambda w: w)
  >>> [round(x, 3) for x in u.tolist()]  # w + 0.5 * w^2 / 5
  [3.9, 5.6]
  """
  return sharpness_aware(
    perturbations.scale_to_adaptive_radius(rho, eta=eta, scaled=scaled),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )


def friendly_sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  sigma: float = 1.0,
  decay: float = 0.9,
  order: Literal['paper', 'official'] = 'paper',
  accumulator_dtype: Any = None,
  mask: masking.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Friendly SAM (F-SAM): perturbs by the noise of the gradient alone.

  With `g` the gradient of the batch at `w`, `gbar` its average over the
  devices, and `m` an estimate of the full gradient, 0 at first, which is
  subtracted::

    m       = decay * m + (1 - decay) * gbar
    d       = g - sigma * m          # order='official': with the m before, and
                                     # d = g, m = gbar at the first step
    epsilon = rho * d / (norm(d) + 1e-12)
    u       = gradient at w + epsilon

  A `d` that is mere rounding against `g`, as of full or repeated batches,
  gives `epsilon = 0`. The first step of both orders is SAM's. At `sigma = 1`
  both have the same direction for equal `m`; below, the paper's `sigma` is the
  program's `sigma * decay / (1 - sigma * (1 - decay))`. As `m` starts
  otherwise, the first tens of steps differ.

  The order of the paper rests on restatements of it that agree; the official
  one is that of the authors' program nblt/F-SAM. Both average the gradient as
  it is; a popular port averages `d` and isn't followed. For the radius of ASAM
  join `subtract_ema` and `scale_to_adaptive_radius`.

  Args:
    rho: radius in the unit of the parameters, a scalar of at least 0, or a
      schedule of it by the step. 0.05 is the default of the authors' class;
      their CIFAR runs use 0.1 to 0.2.
    sigma: share of `m` that is subtracted, in [0, 1]; 0 is SAM. 1 is what the
      paper's experiments are quoted with.
    decay: weight of the past, in [0, 1), above 0 in the order of the paper.
      0.9 is the default of the authors' class, whose runs use 0.6 and 0.95;
      the value of the paper could not be confirmed.
    order: 'paper' subtracts the `m` that holds the current gradient,
      'official' the one before it.
    accumulator_dtype: dtype that `m` is kept in; None for float32 or wider,
      bfloat16 for half of that memory.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 2 gradients. Keeps `m`.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

  References:
    Li, Zhou, He, Cheng, Huang, `Friendly Sharpness-Aware Minimization
    <https://arxiv.org/abs/2403.12350>`_, CVPR 2024.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.friendly_sam(rho=0.5, decay=0.5)
  >>> w = jnp.zeros(2)
  >>> state = tx.init(w)
  >>> for gradient in (jnp.array([4.0, 0.0]), jnp.array([4.0, 4.0])):
  ...   u, state = tx.update(gradient, state, w, grad_fn=lambda w: w)
  >>> [round(x, 3) for x in u.tolist()]  # along (4, 4) - (3, 2)
  [0.224, 0.447]
  """
  return sharpness_aware(
    optax.chain(
      perturbations.subtract_ema(
        decay, sigma, order=order, accumulator_dtype=accumulator_dtype
      ),
      perturbations.scale_to_radius(rho),
    ),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )
