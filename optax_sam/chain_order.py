"""Checks of the order of a chain that contains methods of the library."""

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam.alternation import AlternatingState
from optax_sam.engine.info import SharpnessAwareState
from optax_sam.engine.partition import name_of
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
# Wrappers without a state, and the variable with the wrapped transformation.
_HIDDEN = {'with_extra_args_support': 'tx', 'flatten': 'inner'}
# Wrappers that don't forward the loss, or change the parameters.
_DROPPING = ('LookaheadState', 'SplitRealAndImaginaryState', *_HIDDEN)


class Node(NamedTuple):
  """A method, or a chain or a wrapper that contains it.

  `name` is the class of its state, or the function that built it. `function` is
  its update function, None if unknown. `parts` are the (state, update function)
  pairs of a chain; the one at `position` contains the method. `is_of_optax` is
  whether the class of the state is Optax's.
  """

  name: str
  function: Any
  parts: tuple[tuple[Any, Any], ...] = ()
  position: int = 0
  is_of_optax: bool = False


def check(tx: optax.GradientTransformation, params: optax.Params) -> None:
  """Raises if a method of the library is misplaced in an optimizer.

  A method must be first. It forwards the perturbed gradient only, so a
  transformation before it has no effect. After the base optimizer, a method
  loses the sign of the update (gradient ascent). An optimizer may have at most
  one method, not inside of `optax.masked`, `optax.partition` or a wrapper that
  drops the loss. `swa`, `anti_pgd` and `alternating` must be last.
  Transformations that return gradients unchanged, such as `optax.identity`, may
  be anywhere. A leaf that all others leave unchanged, such as one that
  `optax.masked` excludes, would move along its gradient. `optax_sam.make_step`
  calls this; in other steps, call it once before training. It computes nothing.

  Args:
    tx: the optimizer, with or without a method.
    params: the parameters.

  Returns:
    None.

  Raises:
    ValueError: if the order is wrong; it names the transformation to move.

  >>> import jax.numpy as jnp, optax, optax_sam
  >>> check(optax.chain(optax_sam.sam(), optax.sgd(0.1)), jnp.ones(3))
  >>> try:
  ...   check(optax.chain(optax.clip(1.0), optax_sam.sam()), jnp.ones(3))
  ... except ValueError as error:
  ...   print(str(error).partition(':')[0])
  tx must have the method of optax_sam first, got clip before it
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
    if dropping := [node for node in path if node.name in _DROPPING]:
      wrapper = _name(dropping[0].function) or dropping[0].name
      yield (
        f'tx must not have a method of optax_sam inside of {wrapper}, which '
        f'does not forward the loss, or changes the parameters: place the '
        f'method before it, or leave {wrapper} out. If the update of a wrapper '
        f'takes **extra_args, as that of MultiSteps, it receives the loss if '
        f'you write optax.GradientTransformationExtraArgs(*wrapper).'
      )
    if len(methods) > 1:
      yield (
        f'tx must have one method of optax_sam, got {len(methods)}: the '
        f'perturbed gradient of one would be dropped by the next. Keep one, '
        f'first in optax.chain, and none in the base= of another.'
      )
    # Before `alternating` a change applies to both gradients.
    alternates = 'AlternatingState' in classes
    if not alternates and (names := _changing(path, params, before=True)):
      yield (
        f'tx must have the method of optax_sam first, got {names} before it: '
        f'its effect on the gradient is dropped, because a method forwards the '
        f'perturbed gradient only; after a base optimizer, the sign is lost '
        f'(gradient ascent). Place it after the method: '
        f'optax.chain(optax_sam.sam(), {names}, ...).'
      )
    after = [x for node in path for _, x in node.parts[node.position + 1 :]]
    descending = ', '.join(_name(x) for x in after if _descends(x))
    if descending and any(name in _OPTIMIZERS for name in classes):
      yield (
        f'tx must have no base optimizer after a method that returns the whole '
        f'update, got {descending}: the sign is lost (gradient ascent). Pass '
        f'it as base= if the method has that, or leave it out.'
      )
    if names := _unchanged(path, params):
      some = ', '.join(map(repr, names[:10]))
      yield (
        f'tx must change the gradient of every leaf after the method, got '
        f'{some} unchanged: apply_updates would add this gradient (gradient '
        f'ascent). optax.masked returns what it excludes. To freeze leaves '
        f"write optax.partition({{'train': base, 'frozen': "
        f'optax.set_to_zero()}}, labels), and in the method '
        f"mask=optax_sam.trainable(labels, frozen='frozen')."
      )
  for path in paths((AlternatingState,), state, tx.update):
    if names := _changing(path, params, before=False):
      yield (
        f'tx must have nothing after alternating, got {names} after it: it '
        f'would change the updates that move the parameters back. Place it in '
        f'base, as in optax_sam.alternating(method, optax.chain({names}, '
        f'base)).'
      )
  for path in paths(_AFTER, state, tx.update):
    if names := _changing(path, params, before=False):
      yield (
        f'tx must have swa and anti_pgd last, got {names} after them: place '
        f'{names} before them, as in optax.chain(base, '
        f'optax_sam.swa(start=1000)).'
      )


def paths(
  kinds: tuple[type, ...], state: Any, function: Any, path: Any = ()
) -> Iterator[tuple[Node, ...]]:
  """Yields the path to each state of some classes, from outside to inside.

  States inside a state of these classes are skipped.
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
  # A pair of a number and a state is not a chain, but some wrapper.
  is_chain = not (hasattr(state, '_fields') or any(map(_is_array, state)))
  if not is_chain or len(functions) != len(state):
    only = functions[0] if len(functions) == 1 else None
    functions = [None if is_chain else only] * len(state)
  parts = tuple(zip(state, functions, strict=True))
  is_of_optax = type(state).__module__.partition('.')[0] == 'optax'
  for position, (child, inner) in enumerate(parts):
    node = Node(
      name, function, parts if is_chain else (), position, is_of_optax
    )
    yield from paths(kinds, child, inner, (*path, node))


def _changing(path: tuple[Node, ...], params: Any, *, before: bool) -> str:
  """Names the transformations before or after a state that change gradients."""
  return ', '.join(
    _name(function, number + 1)
    for node in path
    for number, (state, function) in enumerate(node.parts)
    if (number < node.position if before else number > node.position)
    and (isinstance(state, _AFTER) and before)
    | (not isinstance(state, _AFTER) and not _passes(state, function, params))
  )


def adds_nothing(node: Node, params: Any) -> bool:
  """Whether a chain or wrapper is known to return what a method returns.

  A wrapper of Optax changes no sign, so it does not make an optimizer of it.
  """
  if not node.parts:
    return node.is_of_optax
  after = node.parts[node.position + 1 :]
  return all(_passes(state, function, params) for state, function in after)


def _passes(state: Any, function: Any, params: optax.Params) -> bool:
  """Whether a transformation returns its gradients unchanged."""
  found = _passed(state, function, params)
  return found is not None and all(found)


def _passed(
  state: Any, function: Any, params: optax.Params
) -> list[bool] | None:
  """Whether a transformation returns each gradient unchanged; None: unknown."""
  found = []

  def run(state: Any, params: Any) -> None:
    updates, _ = function(params, state, params)
    pairs = zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True)
    found.append([x is y for x, y in pairs])

  # A function of the user, or an unknown one, may raise anything.
  with contextlib.suppress(Exception):
    jax.eval_shape(run, state, params)
  return found[0] if found else None


def _unchanged(path: tuple[Node, ...], params: optax.Params) -> list[str]:
  """Names the leaves that all transformations after a method leave as they are.

  The base optimizer of a method counts as one after it. Without such
  transformations, or if they change no leaf, there is none.
  """
  leaves = jax.tree_util.tree_leaves_with_path(params)
  passed = [True] * len(leaves)
  after = [x for node in path for x in node.parts[node.position + 1 :]]
  found = (arguments(node.function).get('base') for node in path)
  bases: Iterator[Any] = filter(_is_one, found)
  after += [(jax.eval_shape(x.init, params), x.update) for x in bases]
  for state, function in after:
    found = _passed(state, function, params) or [False] * len(leaves)
    passed = [x and y for x, y in zip(passed, found, strict=True)]
  if all(passed):
    return []
  # The gradients of integers are zeros.
  return [
    name_of(path)
    for (path, leaf), is_passed in zip(leaves, passed, strict=True)
    if is_passed and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
  ]


def arguments(function: Any) -> dict[str, Any]:
  """Returns the arguments of a method or of `alternating`, and other variables.

  From its update function; that of a method holds the one with the arguments.
  """
  inside = held(function)
  return inside | held(inside.get('update'))


def _descends(function: Any) -> bool:
  """Whether it is known to negate gradients, as a base optimizer does."""
  size = held(function).get('step_size', held(function).get('step_size_fn'))
  if _word(function) not in ('scale', 'scale_by_schedule'):
    return any(map(_descends, _parts(function)))
  # Not the size of step 0, which may be 0; an injected one isn't known.
  with contextlib.suppress(Exception), jax.ensure_compile_time_eval():
    return bool((size(1) if callable(size) else size) < 0)
  return False


def _word(function: Any) -> str:
  """Returns the name of the function that built an update function."""
  return getattr(function, '__qualname__', '').partition('.')[0]


def _name(function: Any, number: int = 0) -> str:
  """Returns the name under which users know a transformation, if possible."""
  if _word(function) in ('with_extra_args_support', 'chain', 'named_chain'):
    words = dict.fromkeys(_name(x, number) for x in _parts(function))
    return ', '.join(word for word in words if word not in ('', 'identity'))
  return _word(function) or f'the transformation number {number} of the chain'


def held(function: Any) -> dict[str, Any]:
  """Returns the variables of a closure, a method or a partial function."""
  function = inspect.unwrap(function) if callable(function) else function
  function = getattr(function, 'func', function)  # of a partial function
  found = dict(getattr(getattr(function, '__self__', None), '__dict__', {}))
  function = getattr(function, '__func__', function)
  names = getattr(getattr(function, '__code__', None), 'co_freevars', ())
  cells = getattr(function, '__closure__', None) or ()
  for name, cell in zip(names, cells, strict=True):
    with contextlib.suppress(ValueError):  # an empty cell
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
