"""Holds a step against Keras's own dense update of the same table."""

import numpy as np
import pytest
import tensorflow as tf

from tests.ops import tables
from tests.ops.tables import RULE_CASES
from tf_slipstream._compat import IS_KERAS_3, keras
from tf_slipstream.ops.apply_rows import apply_rows

OPTIMIZERS = {
    "sgd": "SGD",
    "adagrad": "Adagrad",
    "adam": "Adam",
    "rmsprop": "RMSprop",
    "ftrl": "Ftrl",
}
NUM_ROWS, DIM, NUM_STEPS, LEARNING_RATE = 6, 5, 4, 0.125


def keras_optimizer(case, **options):
    make = getattr(keras.optimizers, OPTIMIZERS[case.reference])
    return make(LEARNING_RATE, **case.options, **options)


def batch_of_every_row(step, num_repeats):
    """Returns ids that name each row, some of them several times, and gradients in (-1, 1)."""
    random = np.random.default_rng(step)
    ids = np.concatenate([np.arange(NUM_ROWS), random.integers(0, NUM_ROWS, num_repeats)])
    random.shuffle(ids)
    return ids, random.uniform(-1, 1, [len(ids), DIM]).astype(np.float32)


@pytest.mark.parametrize("weight_decay, clip_value", [(0.0, 0.0), (0.125, 0.5)])
@pytest.mark.parametrize("name", [n for n in RULE_CASES if RULE_CASES[n].reference in OPTIMIZERS])
def test_batches_of_every_row_give_what_keras_gives_a_dense_gradient(
    name, weight_decay, clip_value
):
    case = RULE_CASES[name]
    values = np.random.default_rng(0).uniform(-1, 1, [NUM_ROWS, DIM]).astype(np.float32)
    state, variable = tables.new_state(case.rule, values), tf.Variable(values)
    optimizer = keras_optimizer(
        case, weight_decay=weight_decay or None, clipvalue=clip_value or None
    )
    for step in range(1, NUM_STEPS + 1):
        ids, grads = batch_of_every_row(step, num_repeats=NUM_ROWS)
        dense = np.zeros([NUM_ROWS, DIM], np.float32)
        np.add.at(dense, ids, grads)
        optimizer.apply_gradients([(tf.constant(dense), variable)])
        apply_rows(
            case.rule,
            [state],
            [tables.slices(ids, grads)],
            tables.settings(step, LEARNING_RATE, clip_value),
            weight_decays=[weight_decay],
        )
    # The same operations, all but a few in the same order: two roundings a step may differ.
    bound = tables.EPSILON * NUM_STEPS * np.abs(variable.numpy()).max()
    np.testing.assert_allclose(state.table.numpy(), variable.numpy(), rtol=0, atol=bound)


@pytest.mark.skipif(not IS_KERAS_3, reason="tf_keras sums the gradients of repeated ids itself")
def test_repeated_ids_are_summed_once_where_keras_squares_each(native_or_fallback):
    """Adagrad: `(g1 + g2)^2` and not `g1^2 + g2^2`, so that a batch means the same either way."""
    case = RULE_CASES["adagrad"]
    grads = np.array([[1], [1], [2]], np.float32)
    sparse = tf.IndexedSlices(tf.constant(grads), tf.constant([0, 0, 1]), tf.constant([2, 1]))

    def keras_step(gradient):
        variable = tf.Variable(tf.zeros([2, 1]))
        keras_optimizer(case).apply_gradients([(gradient, variable)])
        return variable.numpy()

    state = tables.new_state(case.rule, np.zeros([2, 1]))
    apply_rows(case.rule, [state], [sparse], tables.settings(1, LEARNING_RATE))
    ours, dense = state.table.numpy(), keras_step(tf.convert_to_tensor(sparse))
    np.testing.assert_allclose(ours, dense, rtol=4 * tables.EPSILON)
    assert dense[0] == dense[1]
    # 1 / sqrt(1 + 1) for 2 / sqrt(4), twice: Keras moves row 0 too far.
    assert keras_step(sparse)[0] < 1.2 * dense[0]
