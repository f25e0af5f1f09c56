import dataclasses

import pytest

from optax_sam.train.comparison import plan, timing
from optax_sam.train.loop.cost import StepCost
from optax_sam.train.loop.trainer import Trainer
from optax_sam.train.reports.results import Timing
from tests.train import problems
from tests.train.problems import finished


def setting(**changes):
  config = problems.compare_config(**changes)
  task = problems.small_task('mlp', config.batch_size)
  return config, task, plan.method_settings(config)


@pytest.fixture
def costs(monkeypatch):
  """Replaces the measured costs of methods."""

  def install(**values):
    monkeypatch.setattr(
      plan,
      'step_costs',
      lambda trainers, _: {
        name: StepCost(values[name], min(1.0, values[name]))
        if name == 'ae_sam'
        else StepCost(values[name], values[name])
        for name in trainers
      },
    )

  return install


def test_steps_are_equal_by_default():
  config, task, settings = setting(methods=('sam', 'ae_sam'))
  found = plan.steps(config, task, settings, {})
  assert found == {'sgd': 12, 'sam': 12, 'ae_sam': 12}


def test_cheaper_methods_get_more_steps_for_the_same_gradients(costs):
  costs(sgd=1.0, sam=2.0, k_sam=0.75, cr_sam=3.0)
  config, task, settings = setting(
    methods=('sam', 'k_sam', 'cr_sam'), budget='gradients', steps=100
  )
  found = plan.steps(config, task, settings, {})
  assert found == {'sgd': 300, 'sam': 150, 'k_sam': 400, 'cr_sam': 100}


def test_a_pilot_run_measures_the_fraction_of_ascent_steps(costs, monkeypatch):
  costs(sgd=1.0, ae_sam=2.0)
  config, task, settings = setting(
    methods=('ae_sam',), budget='gradients', steps=100
  )
  pilots = []

  def run(self, current, seed):
    del seed
    pilots.append((self.name, self.config.steps))
    current.log.append({'step': 25, 'second_gradients': 15.0})

  monkeypatch.setattr(Trainer, 'run', run)
  found = plan.steps(config, task, settings, {})
  assert pilots == [('ae_sam', 25)]
  assert found == {'sgd': 160, 'ae_sam': 100}  # 1.6 gradients a step


def test_seconds_are_measured_alternately(monkeypatch):
  config, task, settings = setting(budget='seconds', steps=40)
  measured = []

  def measure(trainers, starts, *, base, rounds):
    measured.append((list(trainers), base, rounds))
    assert all(len(points) == 4 for points in starts.values())
    assert [one.step for one in starts['sam']] == [1, 4, 6, 9]
    return [
      Timing('sgd', [2.0, 9.0, 2.0], [1, 1, 1], None),
      Timing('sam', [5.0, 5.0, 5.0], [2.5, 2.5, 2.5], None),
    ]

  monkeypatch.setattr(timing, 'measure', measure)
  found = plan.steps(config, task, settings, {})
  assert measured == [(['sgd', 'sam'], 'sgd', 5)]
  assert found == {'sgd': 100, 'sam': 40}


def test_added_methods_get_the_budget_of_the_former_ones(costs):
  costs(sgd=1.0, sam=2.0, cr_sam=4.0)
  config, task, settings = setting(
    methods=('sam', 'cr_sam'), budget='gradients', steps=100
  )
  former = {'sgd': 200, 'sam': 100}
  found = plan.steps(config, task, settings, former)
  assert found == {'sgd': 200, 'sam': 100, 'cr_sam': 50}
  assert plan.steps(config, task, settings, found) == found


def test_costs_are_counted_in_compiled_steps():
  config, task, settings = setting(methods=('sam', 'ae_sam', 'k_sam'))
  trainers = {
    name: Trainer(config, task, name, own) for name, own in settings.items()
  }
  found = plan.step_costs(trainers, 'sgd')
  assert found['sgd'] == StepCost(1.0, 1.0)
  # The first gradient of a network needs none for the inputs, so a second one
  # costs as much as the first.
  assert 1.8 < found['sam'].ascended == found['sam'].skipped < 2.2
  assert found['ae_sam'].skipped == 1
  assert 1.8 < found['ae_sam'].ascended < 2.2
  assert found['k_sam'].ascended < 1.5
  # Without the base, it is compiled for the unit.
  del trainers['sgd']
  assert plan.step_costs(trainers, 'sgd')['sam'] == found['sam']
  on_host = Trainer(
    dataclasses.replace(config, execution='host'),
    task,
    'ae_sam',
    settings['ae_sam'],
  )
  assert (
    plan.step_costs({'ae_sam': on_host}, 'sgd')['ae_sam'] == (found['ae_sam'])
  )


def test_the_learning_rate_falls_over_the_steps_of_each_method():
  config, task, settings = setting(steps=12)
  for steps in (12, 24):
    of_method = dataclasses.replace(config, steps=steps)
    one = Trainer(of_method, task, 'sam', settings['sam'])
    rates = [row['learning_rate'] for row in finished(one).log]
    assert len(rates) == steps
    assert max(rates) == rates[round(0.1 * steps)]
    assert 0 < rates[-1] < 0.03 * max(rates)
