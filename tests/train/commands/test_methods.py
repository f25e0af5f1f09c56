import pytest

from optax_sam import catalog
from optax_sam.train.commands import methods
from optax_sam.train.optimizers import build, registry
from tests.train.runs import call, refused


def printed(capsys, *arguments):
  assert call('methods', *arguments) == 0
  return capsys.readouterr().out


def test_the_list_has_every_method_in_80_columns(capsys):
  lines = printed(capsys).splitlines()
  assert max(map(len, lines)) < 80
  first = [line.split()[0] for line in lines if line.startswith('  ')]
  assert set(registry.METHODS) <= set(first)
  text = ' '.join(' '.join(lines).split())
  for method in registry.METHODS.values():
    assert method.row.use_when in text
  for group in catalog.GROUPS.values():
    assert group.replace('`', '') in text


@pytest.mark.parametrize('name', registry.METHODS)
def test_a_method_is_described_in_plain_text(name, capsys):
  text = printed(capsys, name.upper().replace('_', '-'))
  row = registry.METHODS[name].row
  for part in (row.title, row.paper.link, row.use_when.split()[-1]):
    assert part in text
  for setting in build.settable(name):
    assert f'--set {name}.{setting}=' in text
  formulas = text.split('Settings')[0]
  assert not set('\\{}$`') & set(formulas.replace('{tuple', ''))


def test_the_rule_of_sam_is_readable(capsys):
  text = printed(capsys, 'sam')
  assert 'g / (‖g‖ + 10^(-12)),     g = ∇ L(w)' in text
  assert '--set sam.rho=0.05\n      radius in the unit of' in text


@pytest.mark.parametrize(
  ('latex', 'expected'),
  [
    (r'\|g\|^2', '‖g‖²'),
    (r'x_{i-c+1} \le \theta', 'x_(i-c+1) <= θ'),
    (r'\tfrac{\lambda}{2} \bar w', '(λ)/(2) w\u0304'),
    (r'\sqrt{N s}', 'sqrt(N s)'),
    (r'\begin{align*} a &= 1 \\ b &= 2 \end{align*}', 'a = 1\nb = 2'),
  ],
)
def test_formulas_are_written_in_unicode(latex, expected):
  assert methods.formula(latex) == expected


def test_an_unknown_method_is_refused(capsys):
  assert 'did you mean asam' in refused(capsys, 'methods', 'asm')
