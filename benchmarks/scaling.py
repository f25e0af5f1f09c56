"""Cost outside of the gradients: `python -m benchmarks.scaling`.

Measures how the time of an update grows with the numbers of parameters and of
leaves, the compilation time, and the cost of an exact sparse mask compared to a
sort. The perturbed gradient is a precomputed array; the perturbed parameters
are still written to memory.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import optax_sam
from benchmarks import problems, speed_table
from optax_sam.trees import sparse_masks as masks

_METHODS: dict[str, Callable[[], optax.GradientTransformation]] = {
  'sam': optax_sam.sam,
  'asam': optax_sam.asam,
  'friendly_sam': optax_sam.friendly_sam,
  'gsam': optax_sam.gsam,
  'look_sam': optax_sam.look_sam,
  'ae_sam': lambda: optax_sam.ae_sam(total_steps=100),
  'ae_look_sam': lambda: optax_sam.ae_look_sam(total_steps=100),
  'sparse_sam_dynamic': lambda: optax_sam.sparse_sam_dynamic(
    refresh_every=100, total_steps=1000, key=0
  ),
}


def _tree(entries: int, leaves: int) -> dict[str, jax.Array]:
  """Returns equal leaves of random numbers, `entries` of them together."""
  random = np.random.default_rng(0)
  size = entries // leaves
  return {
    f'leaf {i}': jnp.asarray(random.standard_normal(size, np.float32))
    for i in range(leaves)
  }


# Methods with steps without ascent.
_SKIPPING = ('ae_sam', 'look_sam', 'ae_look_sam')


def _update(tx: Any, ascend: bool = True) -> Callable[..., Any]:
  """Returns one branch of a method's update, without gradients."""

  def update(grads, state, params, second):
    points = []

    def grad_fn(point):
      points.append(point)
      return second

    direction, state = tx.update(
      grads, state, params, grad_fn=grad_fn, ascend=ascend
    )
    # Also the perturbed parameters, so that they are written.
    return direction, state, points

  return update


def _direction(update: Any, tree: Any, state: Any, second: Any) -> Any:
  return update(tree, state, tree, second)[0]


def _seconds(function: Callable[[], Any], repeats: int) -> float:
  return _seconds_in_place(lambda _: function(), None, repeats)


def _seconds_in_place(
  function: Callable[[Any], Any], given: Any, repeats: int
) -> float:
  """Returns the median time of a function that donates its input."""
  given = jax.block_until_ready(function(given))
  found = []
  for _ in range(repeats):
    start = time.perf_counter()
    given = jax.block_until_ready(function(given))
    found.append(time.perf_counter() - start)
  return float(np.median(found))


def _table(title: str, head: tuple[str, ...], lines: list[tuple[Any, ...]]):
  print(f'\n### {title}\n')
  print(f'| {" | ".join(head)} |')
  print('|' + '---|' * len(head))
  for line in lines:
    cells = [f'{x:.3g}' if isinstance(x, float) else str(x) for x in line]
    print(f'| {" | ".join(cells)} |', flush=True)


def parameters(sizes: tuple[int, ...], repeats: int) -> None:
  """Prints memory traffic and time of an update by number of parameters.

  A pass reads or writes every parameter once, with 4 bytes each. The unit of
  time is that of a copy.
  """
  lines = []
  for entries in sizes:
    tree = _tree(entries, leaves=10)
    copy = jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t))
    unit = _seconds(lambda copy=copy, tree=tree: copy(tree), repeats) / 2
    rows = [(name, True) for name in _METHODS]
    rows += [(name, False) for name in _SKIPPING]
    for name, ascends in rows:
      tx = _METHODS[name]()
      # The perturbed gradient is donated, as in a complete step.
      update = jax.jit(_update(tx, ascends), donate_argnums=3)
      second = jax.tree.map(jnp.copy, tree)
      # From the second step, which does not refresh the mask.
      second, state, _ = update(tree, jax.jit(tx.init)(tree), tree, second)
      compiled = update.lower(tree, state, tree, second).compile()
      passes = compiled.cost_analysis()['bytes accessed'] / (4 * entries)
      seconds = _seconds_in_place(
        functools.partial(_direction, compiled, tree, state), second, repeats
      )
      lines.append(
        (
          name if ascends else f'{name}, skipped',
          f'{entries:.0e}',
          passes,
          1e3 * seconds,
          seconds / unit,
        )
      )
  head = ('update', 'parameters', 'passes', 'ms', 'time / pass')
  _table('By the number of parameters', head, lines)


def leaves(counts: tuple[int, ...], repeats: int) -> None:
  """Prints compilation time, time and size of a step by number of leaves."""
  lines = []
  for count in counts:
    tree = _tree(1_000_000, count)
    base = optax.sgd(0.1, momentum=0.9)
    rows = {'SAM by hand': (_by_hand(base), base)}
    for name in ('sam', 'ae_sam', 'friendly_sam', 'gsam', 'look_sam'):
      tx = optax.chain(_METHODS[name](), base)
      rows[name] = (_by_library(tx), tx)
    unit = None
    for name, (step, tx) in rows.items():
      arguments = (tree, jax.jit(tx.init)(tree))
      start = time.perf_counter()
      compiled = jax.jit(step).lower(*arguments).compile()
      compile_seconds = time.perf_counter() - start
      unit = unit or compile_seconds
      milliseconds = 1e3 * _seconds(
        lambda c=compiled, a=arguments: c(*a), repeats
      )
      text = compiled.as_text()
      sizes = [text.count(what) / count for what in (' = ', ' fusion(')]
      lines.append(
        (
          name,
          count,
          milliseconds,
          compile_seconds,
          compile_seconds / unit,
          *sizes,
        )
      )
  head = (
    'step',
    'leaves',
    'ms',
    'to compile, s',
    'relative to by hand',
    'instructions a leaf',
    'fusions a leaf',
  )
  _table('By the number of leaves, a million parameters', head, lines)


def _gradient(params: Any) -> Any:
  """A gradient without a loss, and so without a further reduction."""
  return jax.tree.map(jnp.cos, params)


def _by_library(tx: Any) -> Callable[..., Any]:
  def step(params, state):
    grads = _gradient(params)
    updates, state = tx.update(grads, state, params, grad_fn=_gradient)
    return optax.apply_updates(params, updates), state

  return step


def _by_hand(base: Any) -> Callable[..., Any]:
  def step(params, state):
    grads = _gradient(params)
    squares = [jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)]
    scale = 0.05 / (jnp.sqrt(sum(squares)) + 1e-12)
    perturbed = jax.tree.map(lambda p, g: p + scale * g, params, grads)
    updates, state = base.update(_gradient(perturbed), state, params)
    return optax.apply_updates(params, updates), state

  return step


def sparse_masks(entries: int, repeats: int) -> None:
  """Prints the cost of the exact mask of half of all scores.

  The others compute a threshold from one array of all scores, and select too
  many entries for equal scores.
  """
  scores = jax.tree.map(jnp.abs, _tree(entries, leaves=10))
  kept = entries // 2

  def exact(scores):
    return masks.largest(scores, kept)

  def joined(scores):
    return jnp.concatenate(jax.tree.leaves(scores))

  def by_sort(scores):
    threshold = jnp.sort(joined(scores))[entries - kept]
    return jax.tree.map(lambda s: s >= threshold, scores)

  def by_top_k(scores):
    threshold = jax.lax.top_k(joined(scores), kept)[0][-1]
    return jax.tree.map(lambda s: s >= threshold, scores)

  lines, unit = [], None
  rows = {
    'exact, by bisection': exact,
    'jnp.sort': by_sort,
    'jax.lax.top_k': by_top_k,
  }
  for name, function in rows.items():
    compiled = jax.jit(function).lower(scores).compile()
    seconds = _seconds(lambda c=compiled: c(scores), repeats)
    unit = unit or seconds
    temporary = compiled.memory_analysis().temp_size_in_bytes / entries
    lines.append((name, seconds, seconds / unit, temporary))
  head = ('mask', 's', 'relative', 'temporary bytes per entry')
  _table(f'Masks of {entries:.3g} scores', head, lines)


def parts_of_a_batch(names: tuple[str, ...], repeats: int) -> None:
  """Prints the cost of the gradient over a third or a quarter of a batch.

  It is a lower bound for methods that select examples.
  """
  lines = []
  for name in names:
    problem = problems.build(name)
    params, statistics = problem.init()

    @jax.jit
    def gradient(params, batch, problem=problem, statistics=statistics):
      return jax.grad(lambda p: problem.loss(p, statistics, batch)[0])(params)

    batch = problem.batches[0]
    seconds = {}
    for part in (1, 3, 4):
      size = len(batch['labels']) // part
      rows = jax.tree.map(lambda x, size=size: x[:size], batch)
      run = functools.partial(gradient, params, rows)
      seconds[part] = _seconds(run, repeats)
    lines.append((name, seconds[3] / seconds[1], seconds[4] / seconds[1]))
  head = ('network', 'a third', 'a quarter')
  _table('Gradient over a part of a batch, relative to all of it', head, lines)


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of the command."""

  parameters: tuple[int, ...] = (
    100_000,
    1_000_000,
    10_000_000,
    100_000_000,
  )
  """Numbers of parameters for the time of an update."""
  leaves: tuple[int, ...] = (1, 20, 200, 2000)
  """Numbers of leaves for the time of a step."""
  scores: int = 25_000_000
  """Number of scores, of which the mask selects half."""
  networks: tuple[str, ...] = tuple(problems.SIZES)
  """Networks for the gradient over a part of a batch."""
  repeats: int = 7
  """Repetitions; the median counts."""


def main(options: Options) -> None:
  """Prints four tables in Markdown."""
  print(speed_table.heading())
  parameters(options.parameters, options.repeats)
  leaves(options.leaves, options.repeats)
  sparse_masks(options.scores, max(1, options.repeats // 3))
  parts_of_a_batch(options.networks, 10 * options.repeats)


if __name__ == '__main__':
  main(tyro.cli(Options))
