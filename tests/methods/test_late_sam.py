"""Late-phase SAM."""

import pytest

import optax_sam
from optax_sam import policies
from tests.methods import checks
from tests.oracles import late_sam

test_follows_the_rule = checks.follows(late_sam.CASES)
test_is_sam = checks.is_sam(optax_sam.late_sam, {'start': 0})
test_is_the_base_optimizer = checks.is_base(
  optax_sam.late_sam, {'start': 3, 'end': 3}
)


def test_a_start_that_the_training_never_reaches_warns():
  with pytest.warns(UserWarning, match='start=9 is not before'):
    optax_sam.late_sam(start=9, total_steps=9)


def test_the_end_is_not_before_the_start():
  with pytest.raises(ValueError, match='end must be at least start=4, got 3'):
    policies.between(4, 3)
