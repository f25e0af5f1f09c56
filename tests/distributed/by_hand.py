"""Every method in NumPy, from its text alone, on any number of devices.

One row of an array is what one device holds: gradients, perturbations and
directions are of shape (devices, weights), in float64. Weights are flat, leaf
after leaf in the order of JAX.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from optax_sam import masks
from tests.distributed import problem
from tests.distributed.problem import RHO

LEAVES = {
  'bias': slice(0, 8),
  'kernel': slice(8, 40),
  'offset': slice(40, 41),
  'out': slice(41, 49),
}
SIZE = 49


def flat(tree):
  """Joins the leaves of a tree."""
  leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
  return np.concatenate(leaves)


def norm(rows):
  return np.sqrt(np.sum(np.square(rows), axis=-1, keepdims=True))


def dot(left, right):
  return np.sum(left * right, axis=-1, keepdims=True)


def of_length(radius, rows):
  size = norm(rows)
  return radius * rows / np.where(size > 0, size, 1)


def by_leaf(function, *rows):
  """Applies a function leaf by leaf."""
  parts = [function(*(x[..., leaf] for x in rows)) for leaf in LEAVES.values()]
  return np.concatenate(parts, axis=-1)


def losses(w, batch):
  """Returns the losses of the examples, and what a gradient needs."""
  kernel = w[LEAVES['kernel']].reshape(4, 8)
  hidden = np.tanh(batch['x'] @ kernel + w[LEAVES['bias']])
  error = hidden @ w[LEAVES['out']] + w[LEAVES['offset']] - batch['y']
  return batch['weight'] * error**2, hidden, error


def gradient(w, batch):
  """Returns the gradient of the mean loss."""
  _, hidden, error = losses(w, batch)
  at_error = 2 * batch['weight'] * error / len(error)
  before_tanh = np.outer(at_error, w[LEAVES['out']]) * (1 - hidden**2)
  return np.concatenate(
    [
      before_tanh.sum(axis=0),
      (batch['x'].T @ before_tanh).ravel(),
      [at_error.sum()],
      hidden.T @ at_error,
    ]
  )


class Step:
  """One step, as all devices see it.

  Attributes:
    w: the parameters.
    parts: the batch of every device.
    t: number of the step, from 0.
    memory: what a method keeps from step to step.
  """

  def __init__(self, w, batch, t, memory, *, devices, sync):
    rows = np.split(np.arange(len(batch['y'])), devices)
    self.w, self.t, self.memory, self.sync = w, t, memory, sync
    self.parts = [{k: v[i] for k, v in batch.items()} for i in rows]
    memory.setdefault('ascended', []).append(True)

  def gradients(self, points=0.0, rows=None):
    """Returns every device's gradient at its own point, of some of its rows."""
    points = np.broadcast_to(points, (len(self.parts), SIZE))
    rows = [slice(None)] * len(self.parts) if rows is None else rows
    parts = zip(self.parts, rows, strict=True)
    return np.stack(
      [
        gradient(self.w + point, {k: v[i] for k, v in part.items()})
        for point, (part, i) in zip(points, parts, strict=True)
      ]
    )

  def shared(self, rows):
    """Averages over the devices if ascent gradients are."""
    return mean(rows) if self.sync else rows

  def ascent(self, points=0.0, rows=None):
    """Returns the gradients that the devices ascend with."""
    return self.shared(self.gradients(points, rows))

  def losses(self, points=0.0):
    """Returns the losses of every device's examples at its own point."""
    points = np.broadcast_to(points, (len(self.parts), SIZE))
    pairs = zip(points, self.parts, strict=True)
    return [losses(self.w + point, part)[0] for point, part in pairs]

  def skips(self, ascends):
    """Notes the decision; returns whether it is not to ascend."""
    self.memory['ascended'][-1] = bool(ascends)
    return not ascends


def mean(rows):
  return np.broadcast_to(rows.mean(axis=0), rows.shape)


def largest(scores, size):
  return np.argsort(-scores, kind='stable')[:size]


def count(size, rows):
  return size if isinstance(size, int) else max(1, round(size * rows))


def sam(step, ascent_steps=1):
  delta = of_length(RHO, step.ascent())
  for _ in range(ascent_steps - 1):
    delta = delta + of_length(RHO, step.ascent(delta))
    delta = delta * np.minimum(1, RHO / norm(delta))
  return step.gradients(delta)


def sam_of_signs(step):
  return step.gradients(RHO * np.sign(step.ascent()))


def asam(step, eta=0.01):
  scale = np.abs(step.w) + eta
  scale[LEAVES['bias']] = scale[LEAVES['offset']] = 1
  g = step.ascent()
  return step.gradients(RHO * scale**2 * g / norm(scale * g))


def fisher_sam(step):
  g = step.ascent()
  natural = g / (1 + g**2)
  return step.gradients(RHO * natural / np.sqrt(dot(g, natural)))


def unnormalized_sam(step, *, clip=False):
  g = step.ascent()
  return step.gradients(RHO * g / (np.maximum(norm(g), 1) if clip else 1))


def gsam(step, alpha=0.4):
  g = step.ascent()
  gp = step.shared(step.gradients(of_length(RHO, g)))
  return gp - alpha * (g - dot(g, gp) / norm(gp) ** 2 * gp)


def mix(step, alpha):
  g = step.ascent()
  return g + alpha * (step.gradients(of_length(RHO, g)) - g)


def mix_with_unit_clean(step, alpha=0.8):
  g = step.ascent()
  gp = step.gradients(of_length(RHO, g))
  return (1 - alpha) * of_length(1, g) + alpha * gp


def wsam_decoupled(step, a=9.0):
  g = mean(step.gradients())
  gp = mean(sam(step))
  step.memory['outside'] = -problem.LEARNING_RATE * a * (gp - g)[0]
  return g


def noise(step, g, decay=0.9, *, official=False, dtype=np.float64):
  """Subtracts the average of what all devices saw."""
  before = step.memory.get('ema', np.zeros(SIZE))
  after = decay * before + (1 - decay) * g.mean(axis=0)
  if official:
    after = after if step.t else g.mean(axis=0)
  step.memory['ema'] = after.astype(dtype).astype(np.float64)
  return g - (before if official else after)


def friendly_sam(step, **given):
  return step.gradients(of_length(RHO, noise(step, step.ascent(), **given)))


def ss_sam(step):
  coin = jax.random.fold_in(jax.random.key(1), step.t)
  if step.skips(jax.random.bernoulli(coin, 0.5)):
    return step.gradients()
  return sam(step)


def is_sharp(step, low, high, total_steps=20, decay=0.9):
  """The decision of AE-SAM, by the gradient of all devices."""
  past = step.memory.get('moments', (0.0, 0.0))
  moments, ascends = moments_and_decision(
    np.sum(step.gradients().mean(axis=0) ** 2),
    past,
    (1 - step.t / total_steps) * high + step.t / total_steps * low,
    decay,
  )
  step.memory['moments'] = moments
  return ascends


def moments_and_decision(x, past, factor, decay=0.9):
  average = decay * past[0] + (1 - decay) * x
  variance = decay * past[1] + (1 - decay) * (x - average) ** 2
  return (average, variance), x >= average + factor * np.sqrt(variance)


def ae_sam(step):
  if step.skips(is_sharp(step, -1, 1)):
    return step.gradients()
  return sam(step)


def every_third(step):
  return step.t % 3 == 0


def ascend_all(step):
  return of_length(RHO, step.ascent())


def layers_of_ratio(step, rule='global'):
  g = step.ascent()

  def leaf(w, g, total):
    size, length = norm(g), norm(w)
    if rule == 'unit':
      return RHO * g / size
    if rule == 'layer':
      return RHO * length * g / size**2
    return RHO * np.minimum(length / size, 20) * g / total[..., :1]

  total = np.broadcast_to(norm(g), g.shape)
  return by_leaf(leaf, np.broadcast_to(step.w, g.shape), g, total)


def reuse(
  step,
  epsilon=ascend_all,
  decide=every_third,
  descend=lambda step, epsilon: step.gradients(epsilon),
  dtype=np.float64,
  per_leaf=False,
):
  """LookSAM's descent, of averages over the devices."""
  each = by_leaf if per_leaf else lambda function, *rows: function(*rows)
  g, memory = mean(step.gradients()), step.memory
  moved = epsilon(step)  # it may keep something at every step
  if step.skips(decide(step)):
    if 'reused' not in memory:
      return g
    gv = np.broadcast_to(memory['reused'], g.shape)
    return g + each(lambda g, v: 0.1 * norm(g) * v, g, gv)
  gp = mean(descend(step, moved))
  gv = each(lambda gp, g: of_length(1, orthogonal(gp, g)), gp, g)[0]
  memory['reused'] = gv.astype(dtype).astype(np.float64)
  return gp


def orthogonal(gp, g):
  """Returns gp without its part along g; 0 where nothing else is in it."""
  rest = gp - dot(gp, g) / norm(g) ** 2 * g
  return np.where(norm(rest) > 1e-12 * norm(gp), rest, 0)


def unpublished(step):
  epsilon = of_length(RHO, noise(step, step.ascent(), decay=0.5))
  if step.skips(step.t >= 1 and step.t % 2 == 0):
    return step.gradients()
  g = step.ascent()
  return g + 0.5 * (step.gradients(epsilon) - g)


def kept_share(scores, share=0.5):
  mask = np.zeros(SIZE)
  mask[largest(scores, SIZE - int(np.ceil(share * SIZE)))] = 1
  return mask


def one_of_two(scores):
  """Keeps the larger of every two inputs; leaves without inputs whole."""
  mask = np.ones(SIZE)
  pairs = scores[LEAVES['kernel']].reshape(2, 2, 8)
  kept = np.stack([pairs[:, 0] >= pairs[:, 1], pairs[:, 1] > pairs[:, 0]], 1)
  mask[LEAVES['kernel']] = kept.ravel()
  return mask


def fisher_mask(step, samples, choose=kept_share):
  """Renews the mask at every second step, from each device's share."""
  if step.t % 2 == 0:
    share = int(np.ceil(samples / len(step.parts)))
    squares = [
      gradient(step.w, {k: v[i : i + 1] for k, v in part.items()}) ** 2
      for part in step.parts
      for i in range(min(share, len(part['y'])))
    ]
    step.memory['mask'] = choose(np.sum(squares, axis=0))
  return step.memory['mask']


def sparse_sam_fisher(step, samples=5, choose=kept_share):
  mask = fisher_mask(step, samples, choose)
  return step.gradients(mask * of_length(RHO, step.ascent()))


def sparse_sam_dynamic(step, total_steps=20):
  key = jax.random.key(1)

  def draw(key):  # the library's, since any draw would do
    return flat(masks.random_bits(key, problem.params()))

  mask = step.memory.get('mask')
  mask = kept_share(draw(key)) if mask is None else mask
  epsilon = of_length(RHO, step.ascent())
  if step.t % 2 == 0:
    active, outside = np.flatnonzero(mask), np.flatnonzero(mask == 0)
    rate = 0.25 * (1 + np.cos(np.pi * step.t / total_steps))
    moved = min(int(len(active) * rate), len(outside))
    flatness = -np.abs(epsilon.mean(axis=0)[active])
    bits = draw(jax.random.fold_in(jax.random.fold_in(key, step.t), 1))
    renewed = mask.copy()
    renewed[active[largest(flatness, moved)]] = 0
    renewed[outside[largest(bits[outside], moved)]] = 1
    step.memory['mask'] = renewed
  else:
    step.memory['mask'] = mask
  return step.gradients(mask * epsilon)


def top(step, size):
  return [largest(x, count(size, len(x))) for x in step.losses()]


def k_sam(step, ascent=2, descent=0.5):
  epsilon = of_length(RHO, step.ascent(rows=top(step, ascent)))
  return step.gradients(epsilon, top(step, descent))


def ordered_sgd(step, k=0.5):
  return step.gradients(rows=top(step, k))


def esam(step, gamma=0.5, beta=0.6):
  draw = jax.random.fold_in(jax.random.key(1), step.t)
  coins = [
    jax.random.bernoulli(jax.random.fold_in(draw, i), jnp.float32(beta))
    for i in range(len(LEAVES))
  ]
  kept = np.repeat(coins, [leaf.stop - leaf.start for leaf in LEAVES.values()])
  epsilon = of_length(RHO / beta, kept * step.ascent())
  before, after = step.losses(), step.losses(epsilon)
  rows = [
    largest(y - x, count(gamma, len(x)))
    for x, y in zip(before, after, strict=True)
  ]
  return step.gradients(epsilon, rows)


def subset_sam(step, fraction=0.25, key=None):
  rows = np.arange(len(step.parts[0]['y']))
  if key is not None:
    draw = jax.random.fold_in(jax.random.key(key), step.t)
    rows = np.asarray(jax.random.permutation(draw, len(rows)))
  rows = rows[: count(fraction, len(rows))]
  epsilon = of_length(RHO, step.ascent(rows=[rows] * len(step.parts)))
  return step.gradients(epsilon)


def m_sam(step, size=3):
  rows = np.arange(len(step.parts[0]['y']))
  total = 0.0
  for start in range(0, len(rows), size):
    part = [rows[start : start + size]] * len(step.parts)
    perturbed = step.gradients(of_length(RHO, step.ascent(rows=part)), part)
    total = total + len(part[0]) / len(rows) * perturbed
  return total


def le_sam(step, rho_max=0.5):
  g = step.ascent()
  return step.gradients(of_length(np.minimum(RHO / norm(g), rho_max), g))


def cr_sam(step, gamma=0.1, beta=0.01):
  g = step.ascent()
  epsilon = of_length(RHO, g)
  gp, gm = step.gradients(epsilon), step.gradients(-epsilon)
  return gp + gamma * (gp + gm - 2 * g) + beta * (gp - gm)


def top_eigenvector(step, power_steps=2):
  """Renews it at every second step, by differences of gradients."""
  v = step.memory.get('eigenvector')
  if v is None:
    key, leaves = jax.random.key(1), jax.tree.leaves(problem.params())
    signs = [
      jax.random.bernoulli(jax.random.fold_in(key, i), 0.5, leaf.shape)
      for i, leaf in enumerate(leaves)
    ]
    v = of_length(1, 2 * flat(signs) - 1)
  if step.t % 2 == 0:
    for _ in range(power_steps):
      ahead, behind = (
        step.gradients(x * v).mean(axis=0) for x in (1e-4, -1e-4)
      )
      v = of_length(1, ahead - behind)
  step.memory['eigenvector'] = v
  return v


def eigen_sam(step, alpha=0.2):
  g, v = step.ascent(), top_eigenvector(step)
  h = of_length(1, g)
  turn = alpha * np.sign(dot(g, v))
  return step.gradients(RHO * (h + turn * (v - dot(h, v) * h)))


def frob_sam(step, penalty=0.005, num_samples=2):
  key, leaves = jax.random.key(1), jax.tree.leaves(problem.params())
  values, gradients = [], []
  for sample in range(num_samples):
    draw = jax.random.fold_in(jax.random.fold_in(key, step.t), sample)
    z = flat(
      [
        jax.random.normal(jax.random.fold_in(draw, i), leaf.shape)
        for i, leaf in enumerate(leaves)
      ]
    )
    means = np.array([[part.mean()] for part in step.losses(RHO * z)])
    values.append(step.shared(means))
    gradients.append(step.ascent(RHO * z))
  values, gradients = np.array(values), np.array(gradients)
  parts = (values - values.mean(axis=0)) * (gradients - gradients.mean(axis=0))
  total = parts.sum(axis=0) / (num_samples - 1)
  return step.gradients() + penalty / RHO**2 * total


def lpf_sgd(step, parts=3, final_ratio=15.0, total_steps=20):
  key, leaves = jax.random.key(2), jax.tree.leaves(problem.params())
  grown = (final_ratio - 1) * (1 - np.cos(np.pi * step.t / total_steps)) / 2
  size = by_leaf(lambda w: np.full_like(w, norm(w)), step.w)
  filters = norm(step.w[LEAVES['kernel']].reshape(4, 8).T)
  size[LEAVES['kernel']] = np.tile(filters.ravel(), 4)
  examples = len(step.parts[0]['y'])
  total = 0
  for number, rows in enumerate(np.array_split(np.arange(examples), parts)):
    draw = jax.random.fold_in(jax.random.fold_in(key, step.t), number)
    z = flat(
      [
        jax.random.normal(jax.random.fold_in(draw, i), leaf.shape)
        for i, leaf in enumerate(leaves)
      ]
    )
    noise = RHO * (1 + grown) * size * z
    found = step.gradients(noise, [rows] * len(step.parts))
    total = total + len(rows) / examples * found
  return total


def outliers(g, share=0.5):
  """Keeps what stands out of the one leaf with two axes."""
  kernel = g[:, LEAVES['kernel']]
  centred = kernel - kernel.mean(axis=1, keepdims=True)
  z = np.abs(centred / kernel.std(axis=1, ddof=1, keepdims=True))
  kept = g.copy()
  kept[:, LEAVES['kernel']] *= z > np.quantile(z, share, axis=1, keepdims=True)
  return kept


def z_sharp(step):
  return step.gradients(of_length(RHO, outliers(step.ascent())))


def z_sharp_per_tensor(step):
  g = step.ascent()
  epsilon, kernel = of_length(RHO, g), LEAVES['kernel']
  epsilon[:, kernel] = of_length(RHO, outliers(g)[:, kernel])
  return step.gradients(epsilon)


def momentum_sam(step, decay=0.9):
  v = step.memory.get('momentum', np.zeros((1, SIZE)))
  gp = step.gradients(-of_length(RHO, v))
  step.memory['momentum'] = decay * v + gp.mean(axis=0)
  return gp


def async_sam(step):
  last = step.memory.get('last', np.zeros((1, SIZE)))
  step.memory['last'] = step.gradients().mean(axis=0, keepdims=True)
  return step.gradients(of_length(RHO, last))


def sgd(g, trace):
  """Returns the update of the base optimizer, and its next momentum."""
  trace = g + problem.MOMENTUM * trace
  return -problem.LEARNING_RATE * trace, trace


def lookbehind(step, steps=2, alpha=0.5):
  memory, trace = step.memory, step.memory.get('trace', np.zeros(SIZE))
  h, point, gone = step.ascent(), 0.0, 0.0
  for _ in range(steps):
    point = point + of_length(RHO, h)
    found = step.gradients(point)
    h = step.shared(found)
    moved, trace = sgd(found.mean(axis=0), trace)
    gone = gone + moved
  memory['trace'], memory['whole'] = trace, alpha * gone


def sampa(step, weight=0.2):
  memory = step.memory
  ahead = memory.get('ahead', np.zeros(SIZE))
  trace = memory.get('trace', np.zeros(SIZE))
  now = step.parts
  step.parts = memory.get('parts', now)
  first = step.gradients(of_length(RHO, ahead[None]))
  step.parts = now
  guess = sgd(ahead, trace)[0] if step.t else 0.0
  second = step.gradients(guess)
  mixed = (1 - weight) * first + weight * second
  memory['whole'], memory['trace'] = sgd(mixed.mean(axis=0), trace)
  memory['ahead'], memory['parts'] = second.mean(axis=0), now


def normal(*numbers):
  """Returns what is drawn at a step, by a seed and what it is folded with."""
  key = functools.reduce(
    jax.random.fold_in, numbers[1:], jax.random.key(numbers[0])
  )
  leaves = jax.tree.leaves(problem.params())
  return flat(
    [
      jax.random.normal(jax.random.fold_in(key, i), leaf.shape)
      for i, leaf in enumerate(leaves)
    ]
  )


def b_sam(step, parts=3, num_data=900):
  memory, decay = step.memory, 40 / num_data
  m, s = memory.get('moments', (np.zeros(SIZE), np.ones(SIZE)))
  examples = len(step.parts[0]['y'])
  size, descent, ascent = -(-examples // parts), 0.0, 0.0
  for number in range(parts):
    noise = normal(1, step.t, number) / np.sqrt(num_data * s)
    rows = np.arange(examples)[number * size : (number + 1) * size]
    some, share = [rows] * len(step.parts), len(rows) / examples
    g = step.gradients(noise, some)
    ascent = ascent + share * np.abs(g)
    descent = descent + share * step.gradients(RHO * g / s, some)
  m = 0.9 * m + 0.1 * (descent.mean(axis=0) + decay * step.w)
  memory['whole'] = -0.5 * m / s
  past = np.sqrt(s) * ascent.mean(axis=0) + 0.1 + decay
  memory['moments'] = m, 0.999 * s + 0.001 * past


def entropy_sgd(step, inner_steps=4, eta=0.1, gamma=0.03):
  memory, w = step.memory, step.w
  x, mu, v, n = memory.get('walk', (w, w, np.zeros(SIZE), 1))
  g = step.gradients().mean(axis=0)
  v = 0.9 * v + g
  pull = gamma * 1.001**n * (x - w)
  noise = np.sqrt(2 * eta) * 0.01 * normal(1, step.t)
  w = w - eta * (g + 0.9 * v - pull) + noise
  mu = 0.75 * mu + 0.25 * w
  if step.t % inner_steps == inner_steps - 1:
    w = x = mu
    v, n = np.zeros(SIZE), n + 1
  memory['walk'], memory['whole'] = (x, mu, v, n), w - step.w


def everything(step):
  def epsilon(step):
    d = noise(step, step.ascent(rows=top(step, 4)), decay=0.5)
    return fisher_mask(step, 3) * of_length(RHO, d)

  return reuse(
    step,
    epsilon,
    lambda step: is_sharp(step, -1, 1),
    lambda step, epsilon: step.gradients(epsilon, top(step, 0.5)),
  )


part = functools.partial
BFLOAT16 = jnp.dtype('bfloat16')
METHODS = {
  'sam': sam,
  'sam in steps': part(sam, ascent_steps=2),
  'sam of signs': sam_of_signs,
  'asam': asam,
  'friendly_sam': friendly_sam,
  'friendly_sam official': part(friendly_sam, official=True),
  'friendly_sam in bfloat16': part(friendly_sam, dtype=BFLOAT16),
  'gsam': gsam,
  'gsam coupled': gsam,
  'gradient_norm_penalty': part(mix, alpha=0.8),
  'gradient_norm_penalty of unit length': mix_with_unit_clean,
  'wsam': part(mix, alpha=9.0),
  'wsam_decoupled': wsam_decoupled,
  'lookbehind': lookbehind,
  'sampa': sampa,
  'b_sam': b_sam,
  'entropy_sgd': entropy_sgd,
  'fisher_sam': fisher_sam,
  'unnormalized_sam': unnormalized_sam,
  'unnormalized_sam clipped': part(unnormalized_sam, clip=True),
  'ss_sam': ss_sam,
  'look_sam': reuse,
  'look_sam by leaf': part(reuse, per_leaf=True),
  'look_sam in bfloat16': part(reuse, dtype=BFLOAT16),
  'look_layer_sam': part(reuse, epsilon=layers_of_ratio),
  'look_layer_sam layer': part(
    reuse, epsilon=part(layers_of_ratio, rule='layer')
  ),
  'look_layer_sam unit': part(
    reuse, epsilon=part(layers_of_ratio, rule='unit')
  ),
  'ae_sam': ae_sam,
  'ae_look_sam': part(reuse, decide=part(is_sharp, low=0, high=2)),
  'sparse_sam_fisher': sparse_sam_fisher,
  'sparse_sam_fisher of all': part(sparse_sam_fisher, samples=64),
  'sparse_sam_fisher 1:2': part(sparse_sam_fisher, choose=one_of_two),
  'sparse_sam_dynamic': sparse_sam_dynamic,
  'k_sam': k_sam,
  'esam': esam,
  'esam of a number': part(esam, gamma=3),
  'ordered_sgd': ordered_sgd,
  'ordered_sgd of all': part(ordered_sgd, k=1.0),
  'subset_sam': subset_sam,
  'subset_sam drawn': part(subset_sam, fraction=3, key=1),
  'm_sam': m_sam,
  'm_sam by 4': part(m_sam, size=4),
  'm_sam by 8': part(m_sam, size=8),
  'le_sam': le_sam,
  'z_sharp': z_sharp,
  'z_sharp per_tensor': z_sharp_per_tensor,
  'momentum_sam': momentum_sam,
  'async_sam': async_sam,
  'cr_sam': cr_sam,
  'eigen_sam': eigen_sam,
  'frob_sam': frob_sam,
  'lpf_sgd': lpf_sgd,
  'lpf_sgd of one part': part(lpf_sgd, parts=1),
  'unpublished': unpublished,
  'everything': everything,
}


def train(name, devices, *, sync):
  """Takes all steps; returns (parameters, whether each step ascended)."""
  given = jax.tree.map(lambda x: np.asarray(x, np.float64), problem.batches())
  w, memory, momentum = flat(problem.params()), {}, np.zeros(SIZE)
  for t in range(problem.STEPS):
    batch = jax.tree.map(lambda x, t=t: x[t], given)
    step = Step(w, batch, t, memory, devices=devices, sync=sync)
    direction = METHODS[name](step)
    if 'whole' in memory:  # the update, and not the direction of a base
      w = w + memory.pop('whole')
      continue
    direction = direction.mean(axis=0)
    momentum = direction + problem.MOMENTUM * momentum
    w = w - problem.LEARNING_RATE * momentum + memory.pop('outside', 0.0)
  return w, memory['ascended']
