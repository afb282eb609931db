"""Choosing under several replicas: each from its own inputs, with the same pilot and `c`."""

import numpy as np
import pytest

import tf_slipstream as slipstream
from tests.distribute.replicas import strategy_of
from tests.selection.models import DIMS, click_log, click_model, dataset, optimizer
from tf_slipstream import _compat


def selective_of(strategy, **arguments):
    with strategy.scope():
        selective = slipstream.SelectiveModel(click_model(), slipstream.Pilot(DIMS), **arguments)
        selective.compile(optimizer(), loss="binary_crossentropy", metrics=["AUC"])
    return selective


def test_all_replicas_have_the_same_pilot_and_learn_from_those_of_all():
    log = click_log(4000)
    selective = selective_of(strategy_of(2))
    selective.fit(dataset(log, 128), epochs=2, verbose=0)
    selector = selective.selector
    for variable in [*selective.weights, *selector.pilot_optimizer.variables]:
        first, second = (one.numpy() for one in _compat.tf_variable(variable).values)
        np.testing.assert_array_equal(first, second)
    stats = selective.selection_stats()
    assert stats.num_inputs == 8000 and abs(stats.share_kept - 0.5) < 0.06
    assert stats.num_inputs_by_label[1] == 2 * log[1].sum()
    # The pilot learned the sums of whole batches, as one device would.
    alone = slipstream.Pilot(DIMS)
    rule = alone.make_optimizer()
    for ids, labels in dataset(log, 128).repeat(2):
        alone.learn(alone.predict_batch(ids), labels, rule)
    np.testing.assert_allclose(
        selector.pilot.rows.get_weights()[0], alone.rows.get_weights()[0], rtol=1e-3, atol=1e-4
    )


def test_full_batches_are_refused():
    selective = selective_of(strategy_of(2), batches="full")
    with pytest.raises(ValueError, match="batches='shrunk'"):
        selective.fit(dataset(click_log(256), 128), verbose=0)
