"""SAM with the ascent gradient of a part of the batch."""

import optax_sam
from tests.methods import checks
from tests.oracles import subset_sam

test_follows_the_rule = checks.follows(subset_sam.CASES)
test_is_sam = checks.is_sam(
  optax_sam.subset_sam, {'fraction': 1.0}, {'fraction': 1.0, 'key': 3}
)
