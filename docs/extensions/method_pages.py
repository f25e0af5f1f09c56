"""A page for each method, from the catalog, its docstring and recorded runs.

`docs/methods/texts.toml` has what the catalog does not have.
"""

import functools
import inspect
import pathlib
import re
import textwrap
import tomllib
from typing import Any

import docstrings
import evidence
import griffe

from optax_sam.catalog import GROUPS, METHODS, Method

_TEXTS = pathlib.Path(__file__).parents[1] / 'methods' / 'texts.toml'
_PLACES = {
  'chain': 'before the base optimizer, in `optax.chain`',
  'after': 'after the base optimizer, in `optax.chain`',
  'wraps': 'wraps the base optimizer',
  'replaces': 'replaces the base optimizer',
  'loss': 'auxiliary loss',
  'outside': 'outside of the chain, called after each step',
  'adapters': 'trains low-rank adapters of the model',
}
_NEEDS = {
  'value_fn': '`value_fn` or `grad_fn`',
  'loss': '`value_fn`, or `grad_fn` that returns the loss too',
  'examples': '`per_example_value_fn` and `batch`',
  '': 'nothing more',
}
_TITLES = {
  'every step': 'Perturb at every step',
  'one gradient': 'One gradient a step',
  'some steps': 'Perturb at some steps',
  'some examples': 'Select examples',
  'wraps or replaces the optimizer': 'Wrap or replace the optimizer',
  'noise and averages': 'Noise and averages',
  'auxiliary losses': 'Auxiliary losses',
  'low-rank adapters': 'Low-rank adapters',
}
_GUIDES = {
  'wraps or replaces the optimizer': 'wrappers',
  'noise and averages': 'averages',
  'auxiliary losses': 'auxiliary_losses',
  'low-rank adapters': 'lora',
}
_OF_ADAPTERS = '../howto/lora.md#what-is-learned-what-is-forgotten'
_LEGENDS = (
  (r'^1 \+ s$', '`s`: fraction of steps that take an ascent step.'),
  (r'\(\+ 1/3\)', '(+ 1/3): a forward pass, if the unperturbed loss is used.'),
  (r'^[14]/3', 'A forward pass counts 1/3, a part of the batch its fraction.'),
)


@functools.cache
def texts() -> dict[str, dict[str, Any]]:
  """Returns the texts of `texts.toml`, by method.

  Raises:
    ValueError: if a method has no text, or a text no method.
  """
  found = tomllib.loads(_TEXTS.read_text(encoding='utf-8'))
  if found.keys() != METHODS.keys():
    differing = ', '.join(sorted(found.keys() ^ METHODS.keys()))
    msg = f'{_TEXTS.name} and the catalog differ in {differing}'
    raise ValueError(msg)
  return found


def nav() -> list[dict[str, Any]]:
  """Returns the pages as a part of the navigation, by group."""
  return [
    {
      _TITLES[group]: [
        {_short(method): f'methods/{method.name}.md'}
        for method in METHODS.values()
        if method.group == group
      ]
    }
    for group in GROUPS
  ]


def pages() -> dict[str, str]:
  """Returns the text of each page, by its name."""
  return {
    f'methods/{method.name}.md': _page(method) for method in METHODS.values()
  }


def how_to_choose() -> str:
  """Returns the table of the methods that are compared with each other."""
  lines = [
    (
      '| method | gradients per step | mean gain, deviations | to tune | state '
      '| unverified against the paper |'
    ),
    '|---' * 6 + '|',
  ]
  for name, text in texts().items():
    if 'tuning' in text:
      row = METHODS[name]
      lines.append(
        f'| `{name}` | {row.gradients} | {evidence.mean_gain(row)} | '
        f'{text["tuning"]} | {row.state} | {row.unverified or "nothing"} |'
      )
  return '\n'.join(lines)


def program(method: Method) -> str:
  """Returns a program that trains with a method; '' for those outside of it."""
  if not method.is_transformation:
    return ''
  arguments = ', '.join(
    f'{key}={_value(key, value)}' for key, value in method.example.items()
  )
  call = f'optax_sam.{method.name}({arguments})'
  base = 'optax.sgd(0.1)'
  if method.place == 'wraps':
    call = call.replace('(', f'({base}, ' if arguments else f'({base}', 1)
  elif method.place != 'replaces':
    order = (base, call) if method.place == 'after' else (call, base)
    call = f'optax.chain({", ".join(order)})'
    if len(f'tx = {call}') > _WIDTH:
      call = f'optax.chain(\n  {order[0]},\n  {order[1]},\n)'
  extra = {'examples': 'per_example_value_fn=losses, batch=batch', '': ''}
  given = extra.get(method.needs, 'value_fn=value_fn')
  passed = f'grads, opt_state, params{", " if given else ""}{given}'
  update = f'tx.update({passed})'
  if len(f'  updates, opt_state = {update}') > _WIDTH:
    update = f'tx.update(\n    {passed}\n  )'
  result = {
    'entropy_sgd': 'params = optax_sam.outer_params(params, opt_state)',
    'anti_pgd': 'params = optax_sam.without_noise(params, opt_state)',
    'swa': 'params = optax_sam.averaged_params(params, opt_state)',
  }.get(method.name, '')
  text = _PROGRAM.format(optimizer=call, update=update, result=result)
  return text.strip() + '\n'


_WIDTH = 80
_PROGRAM = """
import jax
import jax.numpy as jnp
import optax

import optax_sam


def losses(params, batch):  # of each example
  return (batch['x'] @ params - batch['y']) ** 2


x = jax.random.normal(jax.random.key(0), (64, 3))
batch = {{'x': x, 'y': x @ jnp.array([1.0, -2.0, 0.5])}}
tx = {optimizer}


@jax.jit
def train_step(params, opt_state, batch):
  value_fn = lambda p: jnp.mean(losses(p, batch))
  value, grads = jax.value_and_grad(value_fn)(params)
  updates, opt_state = {update}
  return optax.apply_updates(params, updates), opt_state, value


params = jnp.zeros(3)
opt_state = tx.init(params)
for _ in range(100):
  params, opt_state, value = train_step(params, opt_state, batch)
{result}
"""


def _value(key: str, value: Any) -> str:
  if key == 'batch_like':
    return 'batch'
  return f'{value:.3g}' if isinstance(value, float) else repr(value)


def _short(method: Method) -> str:
  return method.title.partition(' (')[0]


def _page(method: Method) -> str:
  text = texts()[method.name]
  rule, fidelity, references, example = _docstring(method)
  code = program(method)
  parts = [
    f'# {method.title}',
    text['idea'],
    f'**Use it when** {method.use_when}.  ',
    f"**Don't use it when** {text['not_when']}.",
    _facts(method),
    f'## Rule\n\n{rule}',
    '## Code\n\n' + (f'```python\n{code}```' if code else example),
    f'## Arguments\n\n{_reference(method.path)}',
  ]
  if guide := _GUIDES.get(method.group):
    parts.insert(-1, f'[How to use it in training](../howto/{guide}.md).')
  module = method.path.rpartition('.')[0]
  parts += [_reference(f'{module}.{also}') for also in text.get('also', ())]
  if code and example:
    parts.append(f'## Checked by hand\n\n{example}')
  parts += [
    f'## Evidence\n\n{_evidence(method)}',
    f'## Paper\n\n{references}\n\n```bibtex\n{_bibtex(method)}```',
    f'??? note "Fidelity to the paper"\n\n{textwrap.indent(fidelity, "    ")}',
  ]
  return '\n\n'.join(parts) + '\n'


def _facts(method: Method) -> str:
  legend = [
    meaning
    for pattern, meaning in _LEGENDS
    if re.search(pattern, method.gradients)
  ]
  gradients = '<br>'.join([method.gradients, *legend])
  time = evidence.time(method)
  rows = {
    'Gradients per step': gradients,
    'Time of a step, SGD = 1': (
      f'{time}, [the networks](../speed.md) of the speed table'
      if time
      else 'not measured'
    ),
    'State': method.state,
    'Placement': _PLACES[method.place],
    'Needed by `update`': _NEEDS[method.needs],
  }
  if method.is_transformation and method.place != 'after':
    local, synchronized = method.collectives
    rows['All-reduces beyond those of SGD'] = (
      f'{local}; with `sync_ascent=True`: {synchronized} '
      '([legend](../conventions.md#devices))'
    )
  if method.place in ('loss', 'adapters'):
    del rows['Needed by `update`']
  lines = [f'| {key} | {value} |' for key, value in rows.items()]
  return '\n'.join(['| | |', '|---|---|', *lines])


def _reference(name: str) -> str:
  """Returns the directive that shows signature, arguments and result."""
  description = str(name.rpartition('.')[2] not in METHODS).lower()
  return (
    f'::: {name}\n'
    '    options:\n'
    '      heading_level: 3\n'
    f'      show_docstring_description: {description}\n'
    f'      show_docstring_examples: {description}'
  )


def _docstring(method: Method) -> tuple[str, str, str, str]:
  """Returns rule, notes, references and example of the docstring."""
  text = docstrings.to_markdown(inspect.getdoc(method.function) or '')
  sections = griffe.parse_google(griffe.Docstring(text), warnings=False)
  kinds = griffe.DocstringSectionKind
  prose, notes, references, examples = [], [], '', []
  if method.unverified:
    notes.append(f'Unverified against the paper: {method.unverified}.')
  for section in sections:
    if section.kind is kinds.text:
      prose.append(section.value)
    elif section.kind is kinds.examples:
      examples += [example for _, example in section.value]
    elif section.kind is kinds.admonition:
      contents = section.value.contents
      if section.title == 'References':
        references = contents
      else:
        (examples if 'Example' in section.title else notes).append(contents)
  # The first line is a title; an example without a section comes last.
  rule, fence, example = '\n\n'.join(prose).partition('```pycon')
  examples.append(fence + example)
  return (
    rule.partition('\n\n')[2].strip(),
    '\n\n'.join(notes) or 'Nothing in this rule is unverified.',
    references,
    '\n\n'.join(examples).strip(),
  )


def _evidence(method: Method) -> str:
  if method.place == 'adapters':
    return f'[What is learned, what is forgotten]({_OF_ADAPTERS}).'
  if not evidence.variants(method):
    missing = 'This method is not among those whose test accuracy is compared.'
    measured = ' Its [speed](../speed.md) is measured.'
    return missing + (measured if evidence.time(method) else '')
  return (
    'Gain in test score over the base optimizer, with its 95 % interval; bold '
    'if the interval excludes 0. Learning rate and radius were chosen on '
    'validation data. [How it was measured](../evidence.md).\n\n'
    + evidence.gains(method)
  )


def _bibtex(method: Method) -> str:
  """Returns the BibTeX entry of a paper, from catalog and docstring."""
  paper = method.paper
  text = inspect.getdoc(method.function) or ''
  found = re.search(rf'`([^`<]+?)\s*<{re.escape(paper.link)}>`_', text)
  name = ' '.join(found[1].split()) if found else method.title
  authors = paper.authors.replace(' et al.', ' and others')
  key = re.sub(r'\W', '', paper.authors.split()[0].lower())
  return (
    f'@article{{{key}{paper.year}{method.name.replace("_", "")},\n'
    f'  title = {{{{{name}}}}},\n'
    f'  author = {{{authors}}},\n'
    f'  year = {{{paper.year}}},\n'
    f'  eprint = {{{paper.arxiv}}},\n'
    '  archivePrefix = {arXiv},\n'
    f'  url = {{{paper.link}}}\n'
    '}\n'
  )
