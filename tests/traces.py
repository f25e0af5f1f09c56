"""Properties of traced functions."""

import jax


def conditional_gradients(jaxpr):
  """Counts conditionals one branch of which evaluates the loss more often."""
  found = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'cond':
      branches = equation.params['branches']
      found += len({str(x).count('dot_general') for x in branches}) > 1
    else:
      inner = jax.tree.leaves(
        equation.params, is_leaf=lambda x: hasattr(x, 'eqns')
      )
      found += sum(
        conditional_gradients(x) for x in inner if hasattr(x, 'eqns')
      )
  return found
