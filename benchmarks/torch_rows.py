"""The same networks in PyTorch, in a separate process of `speed`.

Reads a request as JSON and prints the rows as one line of JSON.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_optimizer
import torch
from torch import nn

_RATE, _MOMENTUM, _RHO, _PERIOD = 0.01, 0.9, 0.05, 5


class Transformer(nn.Module):
  """A token encoder with layer norm before every block."""

  def __init__(self, size: dict[str, Any]) -> None:
    """Builds the layers."""
    super().__init__()
    width, length = size['width'], size['length']
    self.embed = nn.Embedding(64, width)
    self.position = nn.Parameter(0.02 * torch.randn(length, width))
    layer = nn.TransformerEncoderLayer(
      width,
      size['heads'],
      4 * width,
      dropout=0.0,
      activation='gelu',
      batch_first=True,
      norm_first=True,
    )
    self.blocks = nn.TransformerEncoder(
      layer, size['depth'], nn.LayerNorm(width), enable_nested_tensor=False
    )
    self.head = nn.Linear(width, size['classes'])

  def forward(self, tokens: torch.Tensor) -> torch.Tensor:
    """Returns the logits of every example."""
    return self.head(self.blocks(self.embed(tokens) + self.position).mean(1))


def dense(size: dict[str, Any]) -> nn.Module:
  """Returns hidden layers of equal width."""
  layers, inputs = [], size['features']
  for _ in range(size['depth']):
    layers += [nn.Linear(inputs, size['width']), nn.ReLU()]
    inputs = size['width']
  return nn.Sequential(*layers, nn.Linear(inputs, size['classes']))


def conv(size: dict[str, Any]) -> nn.Module:
  """Returns convolutions with batch norm."""
  layers, inputs = [], 3
  for layer, width in enumerate(size['widths']):
    stride = 1 if layer == 0 else 2
    layers += [
      nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False),
      nn.BatchNorm2d(width),
      nn.ReLU(),
    ]
    inputs = width
  pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
  return nn.Sequential(*layers, *pool, nn.Linear(inputs, size['classes']))


_MODELS = {'dense': dense, 'conv': conv, 'transformer': Transformer}


def batches(size: dict[str, Any]) -> list[tuple[torch.Tensor, torch.Tensor]]:
  """Returns random examples."""
  random, count = np.random.default_rng(0), size['batch']
  found = []
  for _ in range(8):
    inputs = {
      'dense': lambda: random.normal(size=(count, size['features'])),
      'transformer': lambda: random.integers(64, size=(count, size['length'])),
      'conv': lambda: random.normal(
        size=(count, 3, size['side'], size['side'])
      ),
    }[size['kind']]()
    if size['kind'] != 'transformer':
      inputs = inputs.astype(np.float32)
    labels = random.integers(size['classes'], size=count)
    found.append((torch.from_numpy(inputs), torch.from_numpy(labels)))
  return found


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
  return torch.optim.SGD(model.parameters(), lr=_RATE, momentum=_MOMENTUM)


def _plain(model: nn.Module, loss: nn.Module) -> Callable[..., None]:
  optimizer = _sgd(model)

  def step(inputs, labels):
    optimizer.zero_grad()
    loss(model(inputs), labels).backward()
    optimizer.step()

  return step


def _two_steps(kind: Any, **settings: Any) -> Callable[..., Any]:
  def build(model: nn.Module, loss: nn.Module) -> Callable[..., None]:
    optimizer = kind(
      model.parameters(),
      torch.optim.SGD,
      lr=_RATE,
      momentum=_MOMENTUM,
      **settings,
    )

    def step(inputs, labels):
      def closure():
        value = loss(model(inputs), labels)
        value.backward()
        return value

      closure()
      optimizer.step(closure)

    return step

  return build


def _gsam(model: nn.Module, loss: nn.Module) -> Callable[..., None]:
  base = _sgd(model)
  radius = pytorch_optimizer.ProportionScheduler(
    torch.optim.lr_scheduler.ConstantLR(base, factor=1.0),
    max_lr=_RATE,
    max_value=_RHO,
    min_value=0.0,
  )
  optimizer = pytorch_optimizer.GSAM(
    model.parameters(), base_optimizer=base, model=model, rho_scheduler=radius
  )

  def step(inputs, labels):
    optimizer.set_closure(loss, inputs, labels)
    optimizer.step()
    optimizer.update_rho_t()

  return step


_ROWS: dict[str, tuple[float, Callable[..., Any]]] = {
  'SGD': (1.0, _plain),
  'SAM': (2.0, _two_steps(pytorch_optimizer.SAM, rho=_RHO)),
  'GSAM': (2.0, _gsam),
  # Its step always calls the closure, so it costs two gradients.
  'LookSAM': (
    2.0,
    _two_steps(pytorch_optimizer.LookSAM, rho=_RHO, k=_PERIOD),
  ),
  'FriendlySAM': (2.0, _two_steps(pytorch_optimizer.FriendlySAM, rho=_RHO)),
}


def main(request: dict[str, Any]) -> None:
  """Measures all rows alternately and prints them."""
  size, loss = request['size'], nn.CrossEntropyLoss()
  data, count = batches(size), request['count']
  torch.manual_seed(0)
  runs = {
    name: build(_MODELS[size['kind']](size), loss)
    for name, (_, build) in _ROWS.items()
  }
  seconds: dict[str, list[float]] = {name: [] for name in runs}
  for number in range(request['rounds'] + 2):
    for name, step in runs.items():
      start = time.perf_counter()
      for position in range(count):
        step(*data[(number * count + position) % len(data)])
      if number >= 2:
        seconds[name].append((time.perf_counter() - start) / count)
  reference = np.asarray(seconds['SGD'])
  found = []
  for name, values in seconds.items():
    quartiles = np.quantile(np.asarray(values) / reference, (0.25, 0.5, 0.75))
    low, middle, high = map(float, quartiles)
    found.append(
      {
        'row': name,
        'wall': middle,
        'low': low,
        'high': high,
        'milliseconds': 1e3 * float(np.median(values)),
        'gradients': _ROWS[name][0],
      }
    )
  print(json.dumps(found))


if __name__ == '__main__':
  main(json.loads(sys.argv[1]))
