"""Checks the oracle against Keras 3, values worked out by hand, and its own claims."""

import copy
import dataclasses

import keras
import numpy as np
import pytest

from tests.reference import (
    RULES,
    ReferenceTable,
    clip_scale_by_norm,
    global_norm,
    summed_rows,
)

KERAS_OPTIMIZERS = {
    "sgd": keras.optimizers.SGD,
    "adagrad": keras.optimizers.Adagrad,
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "rmsprop": keras.optimizers.RMSprop,
    "ftrl": keras.optimizers.Ftrl,
}

# Powers of two and their small multiples: exact in float32, so that Keras in float32 and the
# oracle in float64 use the same hyperparameters. Epsilon is large enough to be seen.
ADAM = {"beta_1": 0.75, "beta_2": 0.875, "epsilon": 0.125}
RMSPROP = {"rho": 0.75, "epsilon": 0.125}
FTRL = {"initial_accumulator_value": 0.25}
CASES = [
    ("sgd", {}),
    ("sgd", {"momentum": 0.75}),
    ("sgd", {"momentum": 0.75, "nesterov": True}),
    ("adagrad", {"initial_accumulator_value": 0.25, "epsilon": 0.125}),
    ("adam", ADAM),
    ("adam", ADAM | {"amsgrad": True}),
    ("adamw", ADAM | {"weight_decay": 0.125}),
    ("adamw", ADAM | {"weight_decay": 0.125, "amsgrad": True}),
    ("rmsprop", RMSPROP),
    ("rmsprop", RMSPROP | {"momentum": 0.5}),
    ("rmsprop", RMSPROP | {"centered": True}),
    ("rmsprop", RMSPROP | {"momentum": 0.5, "centered": True}),
    ("ftrl", FTRL),
    ("ftrl", FTRL | {"learning_rate_power": -0.75}),
    ("ftrl", FTRL | {"l1_regularization_strength": 0.5}),
    ("ftrl", FTRL | {"l2_regularization_strength": 0.5, "beta": 0.5}),
    ("ftrl", FTRL | {"l2_shrinkage_regularization_strength": 0.25}),
]
ROW_WISE_CASE = ("row_wise_adagrad", {"epsilon": 0.125})
MOMENT_CASES = [case for case in CASES if case[0] in ("sgd", "adam", "adamw", "rmsprop")]

LEARNING_RATES = [0.125, 0.25, 0.0625, 0.125]  # one per step
# Each step rounds fewer than 32 times on the way to a value, each time by at most half an
# epsilon of a term about as large as the value, or as 1. In fact all are within 8 epsilons.
NUM_ROUNDINGS = 32 * len(LEARNING_RATES)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def dense_gradient(ids, grads, num_rows):
    """Returns `[num_rows, dim]`, the sum of the gradient rows of each id."""
    gradient = np.zeros([num_rows, grads.shape[1]])
    np.add.at(gradient, ids, grads)
    return gradient


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shared", [{}, {"weight_decay": 0.25}, {"clipvalue": 0.5}], ids=str)
@pytest.mark.parametrize("rule, options", CASES, ids=str)
def test_touching_every_row_equals_a_dense_keras_step(rule, options, shared, dtype, rng):
    options = options | shared
    ids = [2, 0, 1, 2, 0, 0, 2]
    values = rng.normal(size=[3, 5]).astype(dtype)
    table = ReferenceTable(values, rule, **options)
    variable = keras.Variable(values, dtype=dtype, name="table")
    optimizer = KERAS_OPTIMIZERS[rule](**options)

    for learning_rate in LEARNING_RATES:
        grads = rng.normal(size=[len(ids), 5])
        table.step(ids, grads, learning_rate)
        optimizer.learning_rate = learning_rate
        gradient = keras.ops.convert_to_tensor(dense_gradient(ids, grads, 3), dtype)
        optimizer.apply([gradient], [variable])

    tolerance = NUM_ROUNDINGS * np.finfo(dtype).eps
    np.testing.assert_allclose(variable.numpy(), table.values, rtol=tolerance, atol=tolerance)
    for slot in optimizer.variables[2:]:  # after the iteration and the learning rate
        expected = table.slots[slot.name.removeprefix("table_")]
        np.testing.assert_allclose(slot.numpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rule", KERAS_OPTIMIZERS)
def test_default_hyperparameters_are_those_of_keras(rule):
    table = ReferenceTable(np.zeros([1, 1]), rule)
    config = KERAS_OPTIMIZERS[rule]().get_config()
    defaults = dataclasses.asdict(table.rule)
    assert defaults == {name: config[name] for name in defaults}
    assert table.weight_decay == (config["weight_decay"] or 0.0)


@pytest.mark.parametrize("clipnorm", [0.5, 100.0])
def test_clipping_by_the_global_norm_equals_keras(clipnorm, rng):
    values = rng.normal(size=[2, 3, 5])
    gradients = rng.normal(size=[2, 3, 5])
    variables = [keras.Variable(value, dtype="float64") for value in values]
    optimizer = keras.optimizers.SGD(0.125, global_clipnorm=clipnorm)
    optimizer.apply([keras.ops.convert_to_tensor(grad) for grad in gradients], variables)

    scale = clip_scale_by_norm(global_norm(list(gradients)), clipnorm)
    for value, gradient, variable in zip(values, gradients, variables, strict=True):
        table = ReferenceTable(value, "sgd")
        table.step([0, 1, 2], gradient, 0.125, gradient_scale=scale)
        np.testing.assert_allclose(variable.numpy(), table.values, rtol=1e-14, atol=1e-14)


def test_norms_by_hand():
    assert global_norm([np.array([3.0]), np.array([[0.0, 4.0]])]) == 5.0
    assert clip_scale_by_norm(5.0, 5.0) == 1.0
    assert clip_scale_by_norm(5.0, 2.0) == 0.4


def test_gradients_are_summed_then_scaled_then_clipped():
    table = ReferenceTable([[0.0, 0.0]], "sgd", clipvalue=1.0)
    table.step([0, 0], [[3.0, 2.0], [1.0, -1.0]], learning_rate=1.0, gradient_scale=0.5)
    assert table.values.tolist() == [[-1.0, -0.5]]


def test_repeated_ids_are_summed_once_in_order_of_first_appearance():
    ids, sums = summed_rows([7, 2, 7], [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert ids.tolist() == [7, 2]
    assert sums.tolist() == [[6.0, 8.0], [3.0, 4.0]]


def test_no_ids_have_no_sums():
    ids, sums = summed_rows([], np.zeros([0, 4]))
    assert ids.shape == (0,)
    assert sums.shape == (0, 4)


def test_adagrad_by_hand():
    table = ReferenceTable([[1.0]], "adagrad", initial_accumulator_value=8.0, epsilon=1.0)
    table.step([0, 0], [[1.0], [3.0]], learning_rate=0.5)
    assert table.slots["accumulator"].tolist() == [[24.0]]  # 8 + (1 + 3)^2
    assert table.values.tolist() == [[0.6]]  # 1 - 0.5 * 4 / sqrt(24 + 1)


def test_row_wise_adagrad_by_hand():
    table = ReferenceTable(
        [[1.0, 1.0]], "row_wise_adagrad", initial_accumulator_value=11.0, epsilon=2.0
    )
    table.step([0, 0], [[1.0, 4.0], [1.0, 0.0]], learning_rate=1.5)
    table.step([0], [[3.0, 3.0]], learning_rate=0.0)
    assert table.slots["accumulator"].tolist() == [30.0]  # 11 + (2^2 + 4^2) / 2, then + 3^2
    np.testing.assert_allclose(
        table.values, [[1 - 3 / (21**0.5 + 2), 1 - 6 / (21**0.5 + 2)]], rtol=1e-15
    )


def test_momentum_of_a_row_that_missed_steps_by_hand():
    table = ReferenceTable(np.zeros([2, 1]), "sgd", momentum=0.5)
    for ids in [[0], [1], [1]]:
        table.step(ids, [[1.0]], learning_rate=1.0)
    assert table.values[0].tolist() == [-1.0]  # which no step has missed before step 1
    table.step([0], [[1.0]], learning_rate=1.0)
    # Steps 2 and 3 would have moved it by -1/2 and -1/4. Step 4 makes -1/4 to -1/8 - 1, and what
    # follows is as much again: a gradient is worth 2 in all.
    assert table.slots["momentum"][0].tolist() == [-1.125]
    assert table.values[0].tolist() == pytest.approx([-4.0], abs=1e-12)
    assert table.is_spent.tolist() == [True, False]
    table.step([0], [[0.0]], learning_rate=1.0)
    where_dense_is = -4.0 + 1.125 - 0.5625
    assert table.values[0].tolist() == pytest.approx([where_dense_is], abs=1e-12)


def test_row_wise_adagrad_of_one_dim_is_adagrad(rng):
    values = rng.normal(size=[4, 1])
    row_wise = ReferenceTable(values, "row_wise_adagrad", epsilon=0.0)
    element_wise = ReferenceTable(values, "adagrad", epsilon=0.0)
    for learning_rate in LEARNING_RATES:
        grads = rng.normal(size=[4, 1])
        for table in (row_wise, element_wise):
            table.step([3, 0, 1, 3], grads, learning_rate)
    np.testing.assert_array_equal(row_wise.values, element_wise.values)


@pytest.mark.parametrize("rule, options", [*CASES, ROW_WISE_CASE], ids=str)
def test_untouched_and_stale_rows_keep_values_and_slots(rule, options, rng):
    table = ReferenceTable(rng.normal(size=[5, 3]), rule, **options | {"weight_decay": 0.25})
    table.step(np.arange(5), rng.normal(size=[5, 3]), 0.125)
    table.wake_steps[4] = 3
    before = copy.deepcopy(table)
    table.step([4, 0, 4], rng.normal(size=[3, 3]), 0.125)
    np.testing.assert_array_equal(table.values[1:], before.values[1:])
    for name, slot in table.slots.items():
        np.testing.assert_array_equal(slot[1:], before.slots[name][1:])
    assert not np.array_equal(table.values[0], before.values[0])


@pytest.mark.parametrize("weight_decay", [0.0, 0.125])
@pytest.mark.parametrize("rule, options", MOMENT_CASES, ids=str)
def test_a_missed_step_is_one_with_a_zero_gradient(rule, options, weight_decay, rng):
    """Of a row that was touched in the two steps before: it catches up."""
    options = options | {"weight_decay": weight_decay}
    values = rng.normal(size=[2, 3])
    missing, zeroed = (ReferenceTable(values, rule, **options) for _ in range(2))
    for grad in rng.normal(size=[2, 1, 3]):
        for table in (missing, zeroed):
            table.step([0], grad, 0.125)
    for _ in range(3):
        row = missing.values[0].copy()
        missing.step([1], np.ones([1, 3]), 0.125)
        np.testing.assert_array_equal(missing.values[0], row)
        zeroed.step([0], np.zeros([1, 3]), 0.125)
    missing.settle(0.125)
    tolerance = NUM_ROUNDINGS * np.finfo(np.float64).eps
    moves = weight_decay or missing.rule.moves_without_gradient()
    for name, slot in zeroed.slots.items():
        if missing.rule.has_moments() and moves:
            np.testing.assert_allclose(missing.slots[name][0], slot[0], rtol=tolerance)
    # Weight decay comes at once, behind the movement and not between its parts.
    np.testing.assert_allclose(
        missing.values[0], zeroed.values[0], rtol=0, atol=0.02 * bool(weight_decay) + 1e-12
    )


@pytest.mark.parametrize("rule, options", MOMENT_CASES, ids=str)
def test_a_row_that_misses_steps_is_where_zero_gradients_bring_it(rule, options, rng):
    """In the step of its lookup, and again after the next."""
    options = options | {"weight_decay": 0.0}
    values = rng.normal(size=[2, 3])
    missing, dense = (ReferenceTable(values, rule, **options) for _ in range(2))
    for _ in range(2):
        grad = rng.normal(size=[1, 3])
        for _ in range(3):
            missing.step([1], np.ones([1, 3]), 0.125)
            dense.step([0], np.zeros([1, 3]), 0.125)
        for table in (missing, dense):
            table.step([0], grad, 0.125)
        later = copy.deepcopy(dense)
        for _ in range(300):
            later.step([0], np.zeros([1, 3]), 0.125)
        np.testing.assert_allclose(missing.values[0], later.values[0], rtol=1e-9)


def test_a_stale_row_is_skipped_and_counted_until_its_wake_step():
    table = ReferenceTable(np.zeros([3, 1]), "sgd", wake_steps=[0, 3, 0])
    for _ in range(3):
        table.step([1, 0, 1], np.ones([3, 1]), learning_rate=1.0)
    assert table.values.tolist() == [[-3.0], [-2.0], [0.0]]
    assert table.last_step.tolist() == [3, 3, 0]
    assert (table.num_lookups, table.num_skipped_lookups) == (9, 4)
    assert (table.num_row_updates, table.num_skipped_row_updates) == (6, 2)


def test_skipped_steps_are_missed_steps(rng):
    grads = rng.normal(size=[4, 1, 3])
    skipping = ReferenceTable(np.ones([1, 3]), "adam")
    missing = copy.deepcopy(skipping)
    skipping.step([0], grads[0], 0.125)
    missing.step([0], grads[0], 0.125)
    skipping.wake_steps[0] = 4
    for grad in grads[1:3]:
        skipping.step([0], grad, 0.125)
        missing.step([], np.zeros([0, 3]), 0.125)
    skipping.step([0], grads[3], 0.125)
    missing.step([0], grads[3], 0.125)
    np.testing.assert_array_equal(skipping.values, missing.values)
    assert (skipping.num_skipped_lookups, missing.num_skipped_lookups) == (2, 0)


@pytest.mark.parametrize("row_id", [-1, 3])
def test_ids_outside_the_table_are_refused(row_id):
    table = ReferenceTable(np.zeros([3, 1]), "sgd")
    with pytest.raises(ValueError, match="ids in"):
        table.step([0, row_id], np.ones([2, 1]), 1.0)
    assert table.step_number == 0
    assert not table.values.any()


def test_every_rule_is_checked():
    assert {rule for rule, _ in [*CASES, ROW_WISE_CASE]} == set(RULES)
