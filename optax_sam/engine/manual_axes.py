"""Checks of the axes of `jax.pmap` and `jax.shard_map` that a step runs in.

In `jax.shard_map` with `check_vma=True`, the type of an array says over which
axes it varies. Gradients with respect to an array that does not vary over an
axis are summed over it. Elsewhere types do not say so, and the user must name
the axes.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

from optax_sam.engine import devices
from optax_sam.engine.loss_view import LossView
from optax_sam.trees.array_types import varying

_UNNAMED = '_internal_pmap_axis_name'  # what JAX calls the axis of jax.pmap(f)
_SPLIT = (
  'parameters that are split over such an axis are not supported, as norms '
  'would be those of a part: use jax.jit with sharded arrays'
)


def check(view: LossView, updates: Any, axis_name: Any) -> None:
  """Raises unless a step is known to be correct on all devices.

  A step is wrong if devices may have different examples along an axis over
  which the method doesn't average, if incoming gradients were already summed
  over an axis, or if parameters are split over one.
  """
  check_bound(axis_name)
  _check_local(updates, axis_name)
  mesh = jax.sharding.get_abstract_mesh()
  axes = tuple(name for name in mesh.manual_axes if mesh.shape[name] > 1)
  if not axes:
    return
  tracked, covered = devices.tracked(axes), devices.names(axis_name)
  unknown = [x for x in axes if x not in (*covered, *tracked)]
  if unknown:
    raise ValueError(_left_out(unknown, axis_name, 'axis_name=()'))
  w = jax.tree.leaves(view.leaves.split(view.params))
  # With axis_name=() `value_and_grad` casts, but not incoming gradients.
  kept = jax.tree.leaves(updates) if axis_name == () else w
  apart = [x for x in tracked if any(x in varying(leaf) for leaf in w)]
  asked = [x for x in tracked if axis_name == () or x not in covered]
  equal = [x for x in asked if any(x not in varying(leaf) for leaf in kept)]
  if not apart and not equal:
    return
  depends = set().union(*map(varying, jax.tree.leaves(updates)))
  for traced, is_gradient in _traced(view):
    if split := [x for x in apart if _communicates(traced, x)]:
      msg = (
        f'params vary over {split!r}, and the loss communicates over it: '
        f'{_SPLIT}. If they are equal on all devices, pass update the '
        f"parameters from before jax.lax.pcast(params, ..., to='varying')."
      )
      raise ValueError(msg)
    variables = traced.outvars
    if is_gradient:  # Its result has the type of the parameters.
      inner = (x for eqn in traced.eqns for x in eqn.outvars)
      variables = (*traced.constvars, *inner)
    depends.update(*(varying(x.aval) for x in variables))
  if wrong := [x for x in equal if x in depends]:
    if axis_name == ():
      raise ValueError(_summed(wrong))
    fix = (
      f"params = jax.lax.pcast(params, {_one(wrong)!r}, to='varying') before "
      f'the gradient is taken'
    )
    raise ValueError(_left_out(wrong, axis_name, fix))


def check_bound(axis_name: Any) -> None:
  """Raises unless `update` runs inside of all axes that are named."""
  try:
    devices.tracked(devices.names(axis_name))
  except (NameError, TypeError) as error:
    msg = (
      f'axis_name must name axes of the jax.pmap or jax.shard_map that update '
      f'runs inside of, got axis_name={axis_name!r}: give both one name, or a '
      f'tuple of names, or leave it out under jax.jit with sharded arrays.'
    )
    raise ValueError(msg) from error


def _check_local(updates: Any, axis_name: Any) -> None:
  if not axis_name:
    return
  for leaf in jax.tree.leaves(updates):
    if devices.missing(leaf, axis_name):
      raise ValueError(_summed(axis_name))


def _summed(axis_name: Any) -> str:
  name = _one(axis_name)
  return (
    f'updates must be local gradients, got gradients that are equal on all '
    f'devices of axis {name!r}: inside jax.shard_map the gradient with respect '
    f'to replicated parameters is summed over the axis. Write grads = '
    f"jax.grad(loss)(jax.lax.pcast(params, {name!r}, to='varying')), and don't "
    f'average them: with axis_name the method does.'
  )


def _left_out(axes: Any, axis_name: Any, independent: str) -> str:
  covered = devices.names(axis_name)
  wanted, where, named = _one((*covered, *axes)), f'axis {_one(axes)!r}', ''
  if _UNNAMED in axes:
    wanted, where = 'data', 'an axis without a name'
    named = "jax.pmap(step, axis_name='data') and "
  return (
    f'axis_name must name the axes of jax.pmap or jax.shard_map that the batch '
    f'is split over, got axis_name={axis_name!r} inside {where}. Write {named}'
    f'axis_name={wanted!r}, and pass local gradients, without jax.lax.pmean '
    f'before: the method averages. If the devices train independently, write '
    f'{independent}. And {_SPLIT}.'
  )


def _one(axes: Any) -> Any:
  axes = tuple(axes) if isinstance(axes, (list, tuple)) else (axes,)
  return axes[0] if len(axes) == 1 else axes


def _traced(view: LossView) -> Iterator[tuple[Any, bool]]:
  """Traces the functions of the loss; yields whether each is of gradients."""
  view = dataclasses.replace(view, axis_name=None)
  w = view.leaves.split(view.params)
  if view.value_fn is not None:
    yield jax.make_jaxpr(view.value)(w).jaxpr, False
  if view.per_example_value_fn is not None and view.batch is not None:
    yield jax.make_jaxpr(view.losses)(w).jaxpr, False
  if view.grad_fn is not None:
    yield jax.make_jaxpr(view.value_and_grad)(w).jaxpr, True


def _communicates(traced: Any, axis: Any) -> bool:
  for eqn in traced.eqns:
    found = eqn.params.get('axis_name', eqn.params.get('axes', ()))
    names = found if isinstance(found, tuple) else (found,)
    if axis in names and eqn.primitive.name not in ('axis_index', 'pvary'):
      return True
    for inner in jax.tree.leaves(list(eqn.params.values())):
      inner = getattr(inner, 'jaxpr', inner)
      if hasattr(inner, 'eqns') and _communicates(inner, axis):
        return True
  return False
