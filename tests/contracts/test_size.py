"""Size of the compiled update: linear in the number of leaves.

XLA duplicates cheap scalar arithmetic into every fusion that reads it. If a sum
over all leaves is duplicated into the fusion of every leaf, the size of the HLO
is quadratic in the number of leaves, and compilation takes minutes.
"""

import jax
import jax.numpy as jnp

from tests import compiling
from tests.contracts import table

_FEW, _MANY = 8, 32


def _characters(tx, leaves):
  """Returns the length of the optimized HLO of the update."""
  leaf = jax.ShapeDtypeStruct((64,), jnp.float32)
  params = {f'leaf {i}': leaf for i in range(leaves)}
  state = jax.eval_shape(tx.init, params)

  def losses(params, batch):
    leaves = jax.tree.leaves(params)
    return sum(jnp.vdot(leaf, leaf) for leaf in leaves) * batch

  def update(grads, state, params, batch):
    return tx.update(
      grads,
      state,
      params,
      grad_fn=lambda p: jax.tree.map(jnp.cos, p),
      per_example_value_fn=losses,
      batch=batch,
    )

  batch = jax.ShapeDtypeStruct((8,), jnp.float32)
  program = jax.jit(update, **compiling.READ_AS_USERS)
  compiled = program.lower(params, state, params, batch).compile()
  return len(compiled.as_text())


# Methods that differentiate the loss also compile the loss of this test.
@table.every_kind(
  lambda row: (
    row.place == 'chain'
    and row.method.needs == 'value_fn'
    and 'refresh_every' not in row.parameters
  )
)
def test_hlo_size_is_linear_in_the_number_of_leaves(name):
  tx = table.ROWS[name].alone()
  growth = _characters(tx, _MANY) / _characters(tx, _FEW)
  assert growth < 1.2 * _MANY / _FEW
