"""Checks that a step that cannot be done says why and changes nothing, in any table."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.ops import tables
from tests.ops.tables import RULE_CASES, slices
from tf_slipstream.ops.apply_rows import apply_rows

ADAM = RULE_CASES["adam"].rule
SGD = RULE_CASES["sgd"].rule

NUM_ROWS = {"users": 5, "items": 7}
DIMS = {"users": 3, "items": 2}
LARGEST = float(np.finfo(np.float32).max)


def two_tables(rule=ADAM):
    """Returns the states of two tables that were trained for a step."""
    random = np.random.default_rng(0)
    states = [
        tables.new_state(rule, random.random([NUM_ROWS[name], DIMS[name]]), name)
        for name in NUM_ROWS
    ]
    batches = [good_slices(name) for name in NUM_ROWS]
    apply_rows(rule, states, batches, tables.settings(1, 0.125))
    return states


def good_slices(name, ids=(4, 0, 1, 0), dtype="int64"):
    return slices(np.array(ids, dtype), np.ones([len(ids), DIMS[name]], np.float32))


def assert_step_fails(states, batches, message, rule=ADAM, in_function=False):
    """Fails unless a step raises an error that matches and leaves all variables as they were."""
    before = [tables.arrays_of(state) for state in states]

    def step():
        apply_rows(rule, states, batches, tables.settings(2, 0.125))

    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        tf.function(step)() if in_function else step()
    for state, arrays in zip(states, before):
        tables.assert_same_bits(tables.arrays_of(state), arrays)


def id_message(table, row_id, position):
    return tables.bad_id_message(table, row_id, position, NUM_ROWS[table])


BAD_IDS = [
    ("int32", -1),
    ("int32", 2**31 - 1),
    ("int32", -(2**31)),
    ("int64", -1),
    ("int64", "num_rows"),
    ("int64", "num_rows + 1"),
    ("int64", 2**32),  # 0, if only 32 bits were read
    ("int64", -(2**63)),
]


@pytest.mark.parametrize("position", [0, 2, 3])
@pytest.mark.parametrize("bad_table", NUM_ROWS)
def test_an_id_outside_its_table_is_named_and_changes_nothing(
    native_or_fallback, bad_table, position
):
    states = two_tables()
    for dtype, bad_id in BAD_IDS:
        if isinstance(bad_id, str):
            bad_id = NUM_ROWS[bad_table] + bad_id.count("1")
        ids = [4, 0, 1, 0]
        ids[position] = bad_id
        batches = [
            good_slices(name, ids if name == bad_table else (4, 0), dtype) for name in NUM_ROWS
        ]
        assert_step_fails(states, batches, id_message(bad_table, bad_id, position))


def test_the_first_of_several_bad_ids_is_named(native_or_fallback):
    batches = [good_slices("users"), good_slices("items", [0, 7, -1, 8])]
    assert_step_fails(two_tables(), batches, id_message("items", 7, 1))


def test_a_bad_id_is_named_before_a_bad_gradient(native_or_fallback):
    nan = slices(np.array([1]), np.full([1, DIMS["users"]], np.nan, np.float32))
    batches = [nan, good_slices("items", [7])]
    assert_step_fails(two_tables(), batches, id_message("items", 7, 0))


def test_a_bad_id_far_into_a_large_batch_is_named(native_or_fallback):
    ids = np.arange(50_000) % NUM_ROWS["items"]
    ids[[33_333, 44_444]] = -5, -6
    batches = [good_slices("users"), good_slices("items", ids)]
    assert_step_fails(two_tables(), batches, id_message("items", -5, 33_333))


@pytest.mark.parametrize("bad_table", NUM_ROWS)
def test_a_bad_id_in_a_function_changes_nothing(native_or_fallback, bad_table):
    ids = (4, 0, NUM_ROWS[bad_table])
    batches = [good_slices(name, ids if name == bad_table else (4, 0)) for name in NUM_ROWS]
    message = id_message(bad_table, ids[-1], 2)
    assert_step_fails(two_tables(), batches, message, in_function=True)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bad_table", NUM_ROWS)
def test_a_gradient_that_is_not_finite_is_named_and_changes_nothing(
    native_or_fallback, bad_table, value
):
    states = two_tables()
    for position, element in [(0, 0), (3, -1)]:  # row 4, looked up once, and row 0, twice
        ids = np.array([4, 0, 1, 0])
        batches = []
        for name in NUM_ROWS:
            grads = np.ones([4, DIMS[name]], np.float32)
            if name == bad_table:
                grads[position, element] = value
            batches.append(slices(ids, grads))
        assert_step_fails(states, batches, tables.bad_gradient_message(bad_table, ids[position]))


def test_gradients_whose_sum_overflows_change_nothing(native_or_fallback):
    grads = np.full([2, DIMS["items"]], LARGEST, np.float32)
    batches = [good_slices("users"), slices(np.array([3, 3]), grads)]
    assert_step_fails(two_tables(), batches, tables.bad_gradient_message("items", 3))


@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_a_factor_on_gradients_that_is_not_finite_changes_nothing(native_or_fallback, scale):
    states, batches = two_tables(), [good_slices(name) for name in NUM_ROWS]
    before = [tables.arrays_of(state) for state in states]

    def step():
        scales = [tf.ones([]), tf.constant(scale, tf.float32)]
        apply_rows(ADAM, states, batches, tables.settings(2), scales)

    for run in (step, tf.function(step)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="table 'items': the factor"):
            run()
        for state, arrays in zip(states, before):
            tables.assert_same_bits(tables.arrays_of(state), arrays)


def test_gradients_as_large_as_float32_has_them_are_applied(native_or_fallback):
    state = tables.new_state(SGD, np.zeros([2, 1]))
    grads = np.array([[LARGEST], [-LARGEST], [LARGEST]], np.float32)
    apply_rows(SGD, [state], [slices(np.array([1, 0, 0]), grads)], tables.settings())
    np.testing.assert_array_equal(state.table.numpy(), np.array([[0], [-LARGEST]], np.float32))


def test_a_gradient_that_is_not_finite_in_a_function_changes_nothing(native_or_fallback):
    grads = np.ones([1, DIMS["items"]], np.float32)
    grads[0, 1] = np.nan
    batches = [good_slices("users"), slices(np.array([6]), grads)]
    assert_step_fails(
        two_tables(), batches, tables.bad_gradient_message("items", 6), in_function=True
    )


def test_the_first_of_several_bad_gradients_is_named_in_batch_order():
    """In a batch of several buckets, whose order is that of a hash of the ids."""
    num_rows = 20_000
    state = tables.new_state(SGD, np.zeros([num_rows, 1]))
    ids = np.random.default_rng(0).permutation(num_rows)
    grads = np.ones([num_rows, 1], np.float32)
    grads[100:] = np.nan
    message = rf"the gradient of row {ids[100]} \(first looked up at position 100\)"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        apply_rows(SGD, [state], [slices(ids, grads)], tables.settings())


@pytest.mark.parametrize(
    "num_ids, grads_shape", [(2, [2, 3]), (2, [2, 1]), (2, [3, 2]), (2, [1, 2]), (2, [4])]
)
def test_gradients_of_another_shape_are_refused(native_or_fallback, num_ids, grads_shape):
    batch = slices(np.zeros([num_ids], np.int64), np.ones(grads_shape, np.float32))
    message = r"table 'items': expected indices \[num_lookups\] and gradient rows"
    assert_step_fails(two_tables(), [good_slices("users"), batch], message)


def test_indices_that_are_not_a_vector_are_refused(native_or_fallback):
    batch = slices(np.zeros([2, 2], np.int64), np.ones([2, 2], np.float32))
    message = "table 'items': expected indices"
    assert_step_fails(two_tables(), [good_slices("users"), batch], message)


def _with(states, **fields):
    """Returns the states with fields of the second table replaced."""
    return [states[0], dataclasses.replace(states[1], **fields)]


@pytest.mark.parametrize("num_elements", [0, 13, 15])
def test_a_slot_of_another_size_is_refused(native_or_fallback, num_elements):
    states = two_tables()
    wrong = tf.Variable(tf.zeros([num_elements]))
    states = _with(states, slots=(states[1].slots[0], wrong))
    batches = [good_slices(name) for name in NUM_ROWS]
    assert_step_fails(states, batches, "table 'items': .* should have 14 elements")


@pytest.mark.parametrize(
    "field, dtype, size, wrong_size",
    [
        ("last_steps", tf.int32, 7, 6),
        ("changed_rows", tf.int32, 1, 0),
        ("counters", tf.int64, 9, 8),
    ],
)
def test_a_variable_of_the_optimizer_of_another_size_is_refused(
    native_or_fallback, field, dtype, size, wrong_size
):
    batches = [good_slices(name) for name in NUM_ROWS]
    states = _with(two_tables(), **{field: tf.Variable(tf.zeros([wrong_size], dtype))})
    assert_step_fails(states, batches, f"table 'items': .* should have {size} elements")


@pytest.mark.parametrize(
    "field, dtype, shape",
    [
        ("row_states", tf.int32, [6]),
        ("pool_ints", tf.int64, [7, 7]),
        ("pool_floats", tf.float32, [7, 4]),
        ("policy_state", tf.float64, [7]),
    ],
)
def test_a_pool_of_another_shape_is_refused(field, dtype, shape):
    fields = tables.asleep([0] * 7, 2) | {field: tf.Variable(tf.zeros(shape, dtype))}
    states = _with(two_tables(), **fields)
    batches = [good_slices(name) for name in NUM_ROWS]
    message = r"table 'items' \[7, 2\]: its row states and pool have shapes"
    assert_step_fails(states, batches, message)


@pytest.mark.parametrize("num_entries", [8, -1, np.nan])
def test_a_pool_with_more_entries_than_it_has_is_refused(num_entries):
    fields = tables.asleep([0] * 7, 2)
    fields["policy_state"][0].assign(num_entries)
    states = _with(two_tables(), **fields)
    batches = [good_slices(name) for name in NUM_ROWS]
    assert_step_fails(states, batches, "table 'items': a pool of 7 entries has")


@pytest.mark.parametrize("row_state", [-8, -(2**31), -2])
def test_a_row_state_that_was_not_restored_whole_is_refused(row_state):
    fields = tables.asleep([0] * 7, 2)
    fields["row_states"][5].assign(row_state)
    states = _with(two_tables(), **fields)
    slices = tables.slices(np.array([5]), np.ones([1, 2], np.float32))
    assert_step_fails(
        states, [good_slices("users"), slices], "table 'items': the optimizer's state of row 5"
    )


def test_a_variable_of_another_dtype_is_refused(native_or_fallback):
    states = two_tables()
    doubles = tf.Variable(tf.zeros([7, 2], tf.float64))
    states = _with(states, slots=(states[1].slots[0], doubles))
    batches = [good_slices(name) for name in NUM_ROWS]
    message = "expected (float, got double|float32, got float64)"
    assert_step_fails(states, batches, message)


def test_a_variable_given_twice_is_refused(native_or_fallback):
    states = two_tables()
    batches = [good_slices("users"), good_slices("users")]
    assert_step_fails([states[0], states[0]], batches, "a variable was given twice")
    slot = states[1].slots[0]
    batches = [good_slices(name) for name in NUM_ROWS]
    assert_step_fails(_with(states, slots=(slot, slot)), batches, "a variable was given twice")


class _RuleWith:
    """Adam's rule, with other attributes."""

    def __init__(self, **attributes):
        self.name = attributes.get("name", ADAM.name)
        self.hyperparameters = attributes.get("hyperparameters", ADAM.hyperparameters)
        self.tails = ADAM.tails


@pytest.mark.parametrize(
    "attributes, message",
    [
        ({"name": "adan"}, "there is no update rule 'adan'"),
        ({"name": "adagrad"}, "rule 'adagrad' has 1 hyperparameters, got 4"),
        ({"hyperparameters": (0.5, 0.5, 0.5)}, "rule 'adam' has 4 hyperparameters"),
        ({"hyperparameters": ()}, "rule 'adam' has 4 hyperparameters"),
        # As if it were AMSGrad, which has one slot more.
        ({"hyperparameters": (0.5, 0.5, 0.5, 1.0)}, "rule 'adam' has 3 slots a table, got 4 for 2"),
    ],
)
def test_a_rule_that_does_not_fit_its_state_is_refused(attributes, message):
    batches = [good_slices(name) for name in NUM_ROWS]
    assert_step_fails(two_tables(), batches, message, rule=_RuleWith(**attributes))


@pytest.mark.parametrize(
    "rule, weight_decay, num_clocks", [(ADAM, 0.0, 0), (ADAM, 0.0, 1), (SGD, 0.5, 0), (SGD, 0.0, 1)]
)
def test_without_the_last_step_of_each_row_a_rule_that_needs_it_is_refused(
    rule, weight_decay, num_clocks
):
    states = two_tables(rule)
    if num_clocks == 0:
        states[0] = dataclasses.replace(states[0], last_steps=None)
    states = _with(states, last_steps=None)
    batches, decays = [good_slices(name) for name in NUM_ROWS], [0.0, weight_decay]
    message = f"rule '{rule.name}' with 2 tables: wrong number of last_steps, {num_clocks}"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        apply_rows(rule, states, batches, tables.settings(2), weight_decays=decays)


@pytest.mark.parametrize("step", [0, -1, -(2**63)])
def test_a_step_before_the_first_is_refused(native_or_fallback, step):
    states, batches = two_tables(), [good_slices(name) for name in NUM_ROWS]
    before = [tables.arrays_of(state) for state in states]
    message = rf"the number of a step must be at least 1, got[^\d-]*{step}\b"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        apply_rows(ADAM, states, batches, tables.settings(step))
    for state, arrays in zip(states, before):
        tables.assert_same_bits(tables.arrays_of(state), arrays)


def test_an_error_leaves_the_op_fit_for_the_next_step():
    states = two_tables()
    batches = [good_slices(name) for name in NUM_ROWS]
    assert_step_fails(states, [batches[0], good_slices("items", [9])], "id 9")
    expected = two_tables()
    for each in (states, expected):
        apply_rows(ADAM, each, batches, tables.settings(2, 0.125))
    for state, other in zip(states, expected):
        tables.assert_same_bits(tables.arrays_of(state), tables.arrays_of(other))


def test_a_table_of_rows_without_elements_is_refused(native_or_fallback):
    state = tables.new_state(SGD, np.zeros([3, 0]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="gradient rows"):
        apply_rows(
            SGD, [state], [tables.slices([1], np.ones([1, 0], np.float32))], tables.settings()
        )
