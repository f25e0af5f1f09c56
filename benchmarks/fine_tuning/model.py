"""A byte-level transformer in Flax NNX whose layers can get adapters."""

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.fine_tuning.texts import VOCABULARY
from optax_sam import lora


class Kernel(nnx.Param):
  """A matrix that adapters change."""


class Second(nnx.LoRAParam):
  """A factor of the second pair of adapters, which ascends."""


class Linear(nnx.Module):
  """A linear layer, with adapters after `adapt`."""

  def __init__(self, inputs, outputs, rngs):
    scale = inputs**-0.5
    self.kernel = Kernel(
      scale * jax.random.normal(rngs.params(), (inputs, outputs))
    )
    self.bias = nnx.Param(jnp.zeros(outputs))
    self.lora = nnx.data([])
    self.second = nnx.data([])

  def adapt(self, rank, rngs, *, has_second):
    """Adds adapters whose product is zero."""
    inputs, outputs = self.kernel.shape

    def pair(kind):
      a = inputs**-0.5 * jax.random.normal(rngs.params(), (inputs, rank))
      return nnx.data([kind(a), kind(jnp.zeros((rank, outputs)))])

    self.lora = pair(nnx.LoRAParam)
    if has_second:
      self.second = pair(Second)

  def __call__(self, x, noise_of=None):
    """Returns the outputs, with noise on the kernel if it is given."""
    kernel = self.kernel[...]
    if noise_of is not None:
      kernel = kernel + noise_of(kernel, *(f[...] for f in self.lora))
    y = x @ kernel + self.bias[...]
    # Not merged, so that no gradient has the size of the kernel.
    for pair in (self.lora, self.second):
      if pair:
        y = y + x @ pair[0][...] @ pair[1][...]
    return y


class Block(nnx.Module):
  """Attention to earlier positions, then two dense layers."""

  def __init__(self, width, heads, rngs):
    self.heads = heads
    self.norms = nnx.data([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
    self.qkv = Linear(width, 3 * width, rngs)
    self.out = Linear(width, width, rngs)
    self.up = Linear(width, 4 * width, rngs)
    self.down = Linear(4 * width, width, rngs)

  def __call__(self, x, noises):
    """Returns the outputs; `noises` are those of the four layers."""
    parts = self.qkv(self.norms[0](x), noises[0])
    split = lambda part: part.reshape(*x.shape[:2], self.heads, -1)
    q, k, v = (split(part) for part in jnp.split(parts, 3, axis=-1))
    found = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    x = x + self.out(found.reshape(x.shape), noises[1])
    hidden = jax.nn.gelu(self.up(self.norms[1](x), noises[2]))
    return x + self.down(hidden, noises[3])


class Transformer(nnx.Module):
  """From codes, shape (batch, length), to logits of the next code."""

  def __init__(self, *, length, width=64, heads=4, blocks=2, rngs):
    embedding = 0.02 * jax.random.normal(rngs.params(), (VOCABULARY, width))
    self.embedding = nnx.Param(embedding)
    position = 0.02 * jax.random.normal(rngs.params(), (length, width))
    self.position = nnx.Param(position)
    self.blocks = nnx.data([Block(width, heads, rngs) for _ in range(blocks)])
    self.norm = nnx.LayerNorm(width, rngs=rngs)
    self.out = Linear(width, VOCABULARY, rngs)

  def adapt(self, rank, rngs, *, has_second=False):
    """Adds adapters to all layers of the blocks."""
    for block in self.blocks:
      for layer in (block.qkv, block.out, block.up, block.down):
        layer.adapt(rank, rngs, has_second=has_second)

  def __call__(self, codes, noise=None):
    """Returns logits; `noise` are the arguments of Flat-LoRA's noise."""
    x = self.embedding[...][codes] + self.position[...][: codes.shape[1]]
    for number, block in enumerate(self.blocks):
      x = block(x, [_noise_of(noise, 4 * number + i) for i in range(4)])
    return self.out(self.norm(x))


def _noise_of(noise, number):
  """Returns the noise of a layer as a function of its kernel and adapters."""
  if noise is None:
    return None

  def noise_of(kernel, a, b):
    key = jax.random.fold_in(noise['key'], number)
    merged = lora.merge(kernel, a, b)
    return lora.flat_noise(merged, **{**noise, 'key': key})

  return noise_of


def losses(logits, codes):
  """Returns the mean loss of the next code."""
  logs = jax.nn.log_softmax(logits)
  return -jnp.mean(jnp.take_along_axis(logs, codes[..., None], axis=-1))
