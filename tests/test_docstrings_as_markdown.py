"""Docstrings on the site: formulas, notes, code and results become Markdown."""

import pathlib
import sys

import pytest

# The extras of the site are not installed with the core.
griffe = pytest.importorskip('griffe')
markdown = pytest.importorskip('markdown')
pytest.importorskip('pymdownx')

sys.path.append(str(pathlib.Path(__file__).parents[1] / 'docs' / 'extensions'))
import docstrings  # noqa: E402

# As in Optax: several lines, `aligned`, formulas inside of sentences.
SAM = r"""Sharpness-aware minimization (SAM): perturbs the parameters.

With :math:`g` the gradient at the parameters
:math:`w_t`:

.. math::

  \begin{aligned}
    \epsilon &= \rho \frac{g}{\lVert g \rVert + 10^{-12}} \\
    u &= \nabla L(w_t + \epsilon)
  \end{aligned}

As code::

  epsilon = rho * g / (norm(g) + 1e-12)

  u       = gradient at w + epsilon  # a_b * c_d

.. note::
  It is *unverified* at
  :math:`\rho = 0`.

.. warning:: Two gradients a step.

Args:
  rho: radius :math:`\rho`, for which

    .. math:: \rho \ge 0

    holds.
  mask, axis_name: see `optax_sam.sharpness_aware` and `optax_sam.nothing`.

Returns:
  A transformation. Cost: 2 gradients.

References:
  Foret et al., `Sharpness-Aware
  Minimization <https://arxiv.org/abs/2010.01412>`_, ICLR 2021.

>>> 1 + 1
2
"""
# Rows without `aligned`, and a formula of one line.
GSAM = r"""Surrogate gap guided SAM (GSAM): closes the gap.

.. math::
  \epsilon &= \rho g / \lVert g \rVert \\
  u &= g_p - \alpha g_\perp

.. math:: a_b = c_d

.. math::

  x = 1

  y = 2
"""


def parsed(text, **options):
  docstring = griffe.Docstring(docstrings.to_markdown(text))
  found = griffe.parse_google(docstring, warnings=False, **options)
  return [(section.title or section.kind.value, section) for section in found]


def page(text):
  return markdown.markdown(
    docstrings.to_markdown(text),
    extensions=['pymdownx.arithmatex', 'pymdownx.superfences'],
    extension_configs={'pymdownx.arithmatex': {'generic': True}},
  )


def test_formulas_are_left_to_katex():
  shown = page(SAM.partition('Args:')[0])
  assert r'<span class="arithmatex">\(w_t\)</span>' in shown
  (formula,) = shown.split('<div class="arithmatex">\\[')[1:]
  formula = formula.partition('\\]</div>')[0].replace('&amp;', '&')
  assert ' '.join(formula.split()) == (
    r'\begin{aligned} \epsilon &= \rho \frac{g}{\lVert g \rVert + 10^{-12}} '
    r'\\ u &= \nabla L(w_t + \epsilon) \end{aligned}'
  )


def test_rows_of_a_formula_are_aligned():
  shown = page(GSAM).replace('&amp;', '&')
  first, second, third = (
    x.partition('\\]</div>')[0].strip()
    for x in shown.split('<div class="arithmatex">\\[')[1:]
  )
  assert first.startswith(r'\begin{aligned} \epsilon &= \rho g')
  assert r'\\ u &= g_p' in first
  assert second == 'a_b = c_d'
  assert third == r'\begin{aligned} & x = 1 \\ & y = 2 \end{aligned}'


def test_code_and_examples_are_fenced():
  text = docstrings.to_markdown(SAM)
  assert 'As code:\n\n```text\nepsilon = rho' in text
  assert '\n\nu       = gradient at w + epsilon  # a_b * c_d\n```' in text
  assert '```pycon\n>>> 1 + 1\n2\n```' in text


def test_notes_arguments_results_and_references_are_sections():
  sections = dict(parsed(SAM))
  assert sections['Note'].value.contents == (
    'It is *unverified* at\n\\(\\rho = 0\\).'
  )
  assert sections['Warning'].value.contents == 'Two gradients a step.'
  rho, mask, axis_name = sections['parameters'].value
  assert ' '.join(rho.description.split()) == (
    r'radius \(\rho\), for which $$ \rho \ge 0 $$ holds.'
  )
  link = '[`optax_sam.sharpness_aware`][optax_sam.sharpness_aware]'
  assert mask.description == f'see {link} and `optax_sam.nothing`.'
  assert mask.description == axis_name.description
  assert '[Sharpness-Aware Minimization](https://arxiv.org/abs/2010.01412)' in (
    sections['References'].value.contents
  )


def test_a_result_with_a_colon_is_one_sentence():
  sections = dict(parsed(SAM, returns_named_value=False))
  (result,) = sections['returns'].value
  assert result.description == 'A transformation. Cost&#58; 2 gradients.'
