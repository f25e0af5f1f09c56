"""Fine-tunes a small transformer with LoRA: what is learned, what is forgotten.

    python -m benchmarks.fine_tuning
    python -m benchmarks.fine_tuning --text bible

A byte-level transformer is trained on the sources of Python's standard library,
once for each seed. Then low-rank adapters are trained on 100 kB of another
text; all other parameters are frozen. The learning rate of AdamW and, at that
rate, the radius of each method are those with the smallest validation loss on
one more seed. The table has the loss on both texts, in nats per byte on parts
that were not trained on. Finished runs are not repeated, so an interrupted
command resumes.
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

from benchmarks.fine_tuning import runs as finished
from benchmarks.fine_tuning import texts, training
from benchmarks.fine_tuning.methods import METHODS, Method
from benchmarks.fine_tuning.training import Outcome, Sizes

_RESULTS = pathlib.Path(__file__).parents[1] / 'results'
_CACHE = pathlib.Path('runs') / 'fine_tuning'
LEARNING_RATES = (3e-3, 1e-2, 3e-2, 1e-1)
TUNING_SEED = 100


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs missing runs, then writes the table."""
  options = _options(arguments)
  sizes = training.QUICK if options.quick else Sizes()
  name = 'fine_tuning_quick' if options.quick else 'fine_tuning'
  runs = finished.Runs(options.output / f'{name}.csv')
  old = texts.parts(texts.python_sources())
  new = texts.parts(texts.TEXTS[options.text](), sizes.new_bytes)
  models: dict[int, Any] = {}

  def run(method: Method, rate: float, radius: float, seed: int) -> Any:
    """Returns a finished run, of which there may be one already."""
    settings = {'text': options.text, 'method': method.name, 'seed': seed}
    settings |= {'learning_rate': rate, 'radius': radius}
    settings['tuning'] = seed == TUNING_SEED
    if not runs.find(**settings):
      if seed not in models:
        print(f'pre-training, seed {seed}', flush=True)
        models[seed] = training.pretrained(old, sizes, seed, options.cache)
      runs.add(
        settings, _outcome(models[seed], method, old, new, sizes, settings)
      )
    row = runs.find(**settings)[0]
    print(
      f'{method.name:22} rate {rate:g} radius {radius:g} seed {seed}: new '
      f'{row["new"]:.3f}, first {row["old_before"]:.3f} to {row["old"]:.3f}',
      flush=True,
    )
    return row

  best = lambda rows: min(rows, key=lambda row: row['validation'])
  base = METHODS['AdamW']
  tried = [run(base, rate, 0.0, TUNING_SEED) for rate in LEARNING_RATES]
  rate = best(tried)['learning_rate']
  for method in METHODS.values():
    radius = method.radii[0]
    if len(method.radii) > 1:
      tried = [run(method, rate, r, TUNING_SEED) for r in method.radii]
      radius = best(tried)['radius']
    for seed in range(options.seeds):
      run(method, rate, radius, seed)
  page = options.output / f'{name}_{options.text}.md'
  page.write_text(finished.table(runs, options.text), encoding='utf-8')
  print(f'learning rate {rate:g}; {finished.VERSIONS}')
  print(page.read_text(encoding='utf-8'))


def _outcome(
  model: Any,
  method: Method,
  old: texts.Parts,
  new: texts.Parts,
  sizes: Sizes,
  settings: dict[str, Any],
) -> Outcome:
  tuned, cost = training.fine_tune(
    model,
    method,
    new,
    sizes,
    settings['seed'],
    learning_rate=settings['learning_rate'],
    radius=settings['radius'],
  )
  return Outcome(
    old_before=training.evaluate(model, old.test, sizes),
    old=training.evaluate(tuned, old.test, sizes),
    new=training.evaluate(tuned, new.test, sizes),
    validation=training.evaluate(tuned, new.validation, sizes),
    **cost,
  )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument(
    '--text',
    choices=texts.TEXTS,
    default='topics',
    help="the new text: the topics of Python's help, or the King James Bible "
    "of Debian's package bible-kjv",
  )
  parser.add_argument('--seeds', type=int, default=3, help='number of seeds')
  parser.add_argument(
    '--output', type=pathlib.Path, default=_RESULTS, help='directory of results'
  )
  parser.add_argument(
    '--cache', type=pathlib.Path, default=_CACHE, help='pre-trained models'
  )
  parser.add_argument(
    '--quick', action='store_true', help='tiny sizes, to test the program'
  )
  return parser.parse_args(arguments)


if __name__ == '__main__':
  main()
