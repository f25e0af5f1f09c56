import pytest

from optax_sam.train.config import names
from optax_sam.train.optimizers import build

METHODS = {
  'sam': 'sam',
  'SAM': 'sam',
  'look-sam': 'look_sam',
  'AE-LookSAM': 'ae_look_sam',
  'ae_looksam': 'ae_look_sam',
  'F-SAM': 'friendly_sam',
  'FriendlySAM': 'friendly_sam',
  'GNP': 'gradient_norm_penalty',
  'SAM-ON': 'sam_on',
  'm-SAM': 'm_sam',
  'Momentum-SAM': 'momentum_sam',
  'SSAM-F': 'sparse_sam_fisher',
  'SGD': 'sgd',
}


@pytest.mark.parametrize('written', METHODS)
def test_methods_are_found_in_any_spelling(written):
  found = build.canonical_name(written, 'sgd', '--method')
  assert found == METHODS[written]


@pytest.mark.parametrize(
  ('written', 'message'),
  [
    ('asm', "'asm' is unknown; did you mean asam or"),
    ('look_same', 'did you mean look_sam'),
    ('zzz', "'zzz' is unknown; `optax-sam methods` lists all"),
    ('', "'' is unknown"),
    ('MSAM', "'MSAM' may mean m_sam or momentum_sam; write one"),
    ('adam', "'adam' is a base optimizer; write --base adam"),
  ],
)
def test_unknown_methods_are_refused_with_the_closest_ones(written, message):
  with pytest.raises(ValueError, match=message) as error:
    build.canonical_name(written, 'sgd', '--method')
  assert len(str(error.value)) < 130


def test_short_lists_are_printed():
  for written, message in (
    ('gren', 'did you mean green[?] choose one of red, green'),
    ('blue', 'unknown; choose one of red, green, or ask'),
  ):
    with pytest.raises(ValueError, match=message):
      names.find('color', written, ('red', 'green'), hint='or ask')
