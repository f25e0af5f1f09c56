"""Where the methods of the library stand in a chain, and whether they may."""

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import optax

from optax_sam.engine.info import SharpnessAwareState
from optax_sam.methods.anti_pgd import AntiPgdState
from optax_sam.methods.entropy_sgd import EntropySgdState
from optax_sam.methods.swa import SwaState

METHODS = (SharpnessAwareState, EntropySgdState)
# States of methods that return the whole update.
_OPTIMIZERS = (
  *('BSamState', 'EntropySgdState', 'LookbehindState', 'SampaState'),
  'WsamDecoupledState',
)
_AFTER = (AntiPgdState, SwaState)
_MASKS = ('MaskedState', 'PartitionState')
# Those without a state of their own, and where they hold what they wrap.
_HIDDEN = {'with_extra_args_support': 'tx', 'flatten': 'inner'}
# Wrappers that don't hand on the loss, or the parameters as they are.
_DROPPING = ('LookaheadState', 'SplitRealAndImaginaryState', *_HIDDEN)


class Node(NamedTuple):
  """A method, or a chain or a wrapper around it.

  Attributes:
    name: class of its state, or name of the function that built it.
    function: its update function, None if that isn't known.
    parts: (state, update function or None) of each part of a chain.
    position: which part the method is in.
  """

  name: str
  function: Any
  parts: tuple[tuple[Any, Any], ...] = ()
  position: int = 0


def check(tx: optax.GradientTransformation, params: optax.Params) -> None:
  """Raises if a method of the library can't work where it stands.

  A method must be first: what stands before it is thrown away, since only the
  second gradient goes on; behind the base optimizer it climbs. An optimizer has
  one method at most, not inside of `optax.masked` or `optax.partition`, nor
  inside of a wrapper that drops the loss. `swa` and `anti_pgd` are last. What
  returns gradients as they are, such as `optax.identity`, may stand anywhere.
  `optax_sam.make_step` calls this; with a step of your own, call it once before
  training. It computes nothing.

  Args:
    tx: the optimizer, with or without a method.
    params: the parameters.

  Returns:
    None.

  Raises:
    ValueError: if the order is wrong; it names what is in the way.

  >>> import jax.numpy as jnp, optax, optax_sam
  >>> check(optax.chain(optax_sam.sam(), optax.sgd(0.1)), jnp.ones(3))
  >>> try:
  ...   check(optax.chain(optax.clip(1.0), optax_sam.sam()), jnp.ones(3))
  ... except ValueError as error:
  ...   print(str(error)[:64])
  tx must have the method of optax_sam first, but clip stands befo
  """
  if not isinstance(tx, optax.GradientTransformation):
    msg = (
      f'tx must be a gradient transformation, got a {type(tx).__name__}: write '
      f'optax.chain(optax_sam.sam(), optax.sgd(0.1)), and for MultiSteps '
      f'tx.gradient_transformation().'
    )
    raise ValueError(msg)
  for fault in _faults(tx, params):
    raise ValueError(fault)


def _faults(tx: Any, params: optax.Params) -> Iterator[str]:
  state = jax.eval_shape(lambda: tx.init(params))
  methods = list(paths(METHODS, state, tx.update))
  for path in methods:
    classes = [node.name for node in path]
    if any(name in _MASKS for name in classes):
      yield (
        'tx must not have a method of optax_sam inside of optax.masked or '
        'optax.partition, which leave out parameters that the loss needs. Put '
        'it in front, and say by mask= which leaves may be perturbed: '
        'optax.chain(optax_sam.sam(mask=mask), optax.masked(base, mask)).'
      )
    if dropping := [node for node in path if node.name in _DROPPING]:
      wrapper = _name(dropping[0].function) or dropping[0].name
      yield (
        f'tx must not have a method of optax_sam inside of {wrapper}, which '
        f'does not get the loss to hand on, or not the parameters as they are: '
        f'put the method in front, or leave {wrapper} out. One whose update '
        f'takes **extra_args, as that of MultiSteps, gets them if you write '
        f'optax.GradientTransformationExtraArgs(*wrapper).'
      )
    if len(methods) > 1:
      yield (
        f'tx must have one method of optax_sam, got {len(methods)}: the second '
        f'gradient of one would be thrown away by the next. Keep one, first in '
        f'optax.chain, and none in the base= of another.'
      )
    if names := _changing(path, params, before=True):
      yield (
        f'tx must have the method of optax_sam first, but {names} stands '
        f'before it: what that does to the gradient is thrown away, since only '
        f'the second gradient goes on, and behind a base optimizer the sign is '
        f'lost (gradient ascent). Put it behind the method: '
        f'optax.chain(optax_sam.sam(), {names}, ...).'
      )
    behind = [x for node in path for _, x in node.parts[node.position + 1 :]]
    turned = ', '.join(_name(x) for x in behind if _turns(x))
    if turned and any(name in _OPTIMIZERS for name in classes):
      yield (
        f'tx must have no base optimizer behind a method that returns the '
        f'whole update, got {turned}: the sign is lost (gradient ascent). Pass '
        f'it as base= where there is one, or leave it out.'
      )
  for path in paths(_AFTER, state, tx.update):
    if names := _changing(path, params, before=False):
      yield (
        f'tx must have swa and anti_pgd last, but {names} stands behind: put '
        f'it in front, as in optax.chain(base, optax_sam.swa(start=1000)).'
      )


def paths(
  kinds: tuple[type, ...], state: Any, function: Any, path: Any = ()
) -> Iterator[tuple[Node, ...]]:
  """Yields the way to each state of some classes, from outside to inside.

  What is inside of a state of these classes is passed over.
  """
  while (word := _word(function)) in _HIDDEN:
    inner = getattr(held(function).get(_HIDDEN[word]), 'update', None)
    path = (*path, Node(word, function))
    function = inner
  name = type(state).__name__
  if isinstance(state, kinds):
    yield (*path, Node(name, function))
    return
  state = tuple(state.values()) if isinstance(state, Mapping) else state
  if not isinstance(state, (tuple, list)):
    return
  functions = _parts(function)
  # A pair of a number and a state is no chain, but a wrapper of somebody's.
  is_chain = not (hasattr(state, '_fields') or any(map(_is_array, state)))
  if not is_chain or len(functions) != len(state):
    only = functions[0] if len(functions) == 1 else None
    functions = [None if is_chain else only] * len(state)
  parts = tuple(zip(state, functions, strict=True))
  for position, (child, inner) in enumerate(parts):
    node = Node(name, function, parts if is_chain else (), position)
    yield from paths(kinds, child, inner, (*path, node))


def _changing(path: tuple[Node, ...], params: Any, *, before: bool) -> str:
  """Returns what changes gradients before or behind a state, by name."""
  return ', '.join(
    _name(function, number + 1)
    for node in path
    for number, (state, function) in enumerate(node.parts)
    if (number < node.position if before else number > node.position)
    and (isinstance(state, _AFTER) and before)
    | (not isinstance(state, _AFTER) and not _passes(state, function, params))
  )


def _passes(state: Any, function: Any, params: optax.Params) -> bool:
  """Whether a transformation returns the very gradients that it gets."""
  found = []

  def run(state: Any, params: Any) -> None:
    updates, _ = function(params, state, params)
    pairs = zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True)
    found.append(all(x is y for x, y in pairs))

  # A stranger's function, which may not be known, raises what it likes.
  with contextlib.suppress(Exception):
    jax.eval_shape(run, state, params)
  return found == [True]


def _turns(function: Any) -> bool:
  """Whether it is known to turn the sign, as a base optimizer does."""
  size = held(function).get('step_size', held(function).get('step_size_fn'))
  if _word(function) not in ('scale', 'scale_by_schedule'):
    return any(map(_turns, _parts(function)))
  # Not that of step 0, which warms up; an injected one isn't known.
  with contextlib.suppress(Exception), jax.ensure_compile_time_eval():
    return bool((size(1) if callable(size) else size) < 0)
  return False


def _word(function: Any) -> str:
  """Returns the name of the function that built an update function."""
  return getattr(function, '__qualname__', '').partition('.')[0]


def _name(function: Any, number: int = 0) -> str:
  """Returns what users call a transformation, as far as that can be known."""
  if _word(function) in ('with_extra_args_support', 'chain', 'named_chain'):
    words = dict.fromkeys(_name(x, number) for x in _parts(function))
    return ', '.join(word for word in words if word not in ('', 'identity'))
  return _word(function) or f'the transformation number {number} of the chain'


def held(function: Any) -> dict[str, Any]:
  """Returns what a function, a method or a partial function holds."""
  function = inspect.unwrap(function) if callable(function) else function
  function = getattr(function, 'func', function)  # of a partial function
  found = dict(getattr(getattr(function, '__self__', None), '__dict__', {}))
  function = getattr(function, '__func__', function)
  names = getattr(getattr(function, '__code__', None), 'co_freevars', ())
  cells = getattr(function, '__closure__', None) or ()
  for name, cell in zip(names, cells, strict=True):
    with contextlib.suppress(ValueError):  # nothing is in it yet
      found[name] = cell.cell_contents
  return found


def _parts(function: Any) -> list[Any]:
  """Returns the update functions that an update function calls, in order."""
  inside, leaves = held(function), []
  if 'update_fns' in inside:
    return list(inside['update_fns'])
  with contextlib.suppress(ValueError):  # of a dict whose keys don't compare
    leaves = jax.tree.leaves(inside, is_leaf=_is_one)
  return [leaf.update for leaf in leaves if _is_one(leaf)]


def _is_one(value: Any) -> bool:
  return isinstance(value, optax.GradientTransformation)


def _is_array(state: Any) -> bool:
  return hasattr(state, 'shape')
