"""Checks that Python and the native library have one idea of what a table carries."""

import ctypes

import numpy as np
import pytest
import tensorflow as tf

from tests.ops import tables
from tests.ops.tables import RULE_CASES
from tf_slipstream import StalenessPolicy, update_rules
from tf_slipstream.ops import _library
from tf_slipstream.ops._tables import pool_arguments
from tf_slipstream.ops.apply_rows import apply_rows
from tf_slipstream.state import schema
from tf_slipstream.state.stats import SkipStats

SGD = RULE_CASES["sgd"].rule
# Before a test loads the library once more: TensorFlow lists the ops of a library only once.
_library.native_ops()


def said_by_the_library():
    describe = ctypes.CDLL(_library._path()).SlipstreamSchema
    describe.restype = ctypes.c_char_p
    return describe().decode()


def test_the_librarys_schema_is_pythons():
    assert said_by_the_library() == schema.text()


def test_the_schema_has_a_version_and_all_columns():
    lines = [line.split(" ") for line in schema.text().splitlines()]
    lists = {name: tuple(columns) for name, *columns in lines}
    assert lists == {
        "version": (str(schema.VERSION),),
        "pool_ints": schema.POOL_INTS,
        "policy_state": schema.POLICY_STATE,
        "counters": schema.COUNTERS,
        "vocabulary_counters": schema.VOCABULARY_COUNTERS,
        "policy_fields": tuple(StalenessPolicy().numbers(0.0)),
    }


@pytest.mark.parametrize("columns", [schema.POOL_INTS, schema.POLICY_STATE, schema.COUNTERS])
def test_no_column_comes_twice(columns):
    assert len(set(columns)) == len(columns)


def test_the_counts_of_rows_come_first_and_are_those_of_the_statistics():
    assert schema.COUNTERS[: len(schema.ROW_COUNTS)] == schema.ROW_COUNTS
    fields = set(SkipStats.__dataclass_fields__)
    assert fields - set(schema.ROW_COUNTS) == {"num_stale_rows", "num_rows", "drift_threshold"}


@pytest.mark.parametrize(
    "theirs, difference",
    [
        (
            schema.text().replace(f"version {schema.VERSION}", "version 0"),
            f"'version 0' where 'version {schema.VERSION}'",
        ),
        (schema.text().replace(" hand", ""), "'policy_state .*' where 'policy_state .* hand'"),
        (schema.text() + "\nmore lists", "'more lists' where 'None'"),
        (schema.text().rpartition("\n")[0], "'None' where 'policy_fields .*'"),
    ],
)
def test_a_library_with_another_schema_is_refused_and_the_difference_named(
    theirs, difference, monkeypatch
):
    monkeypatch.setattr(_library, "_load", _library._load.__wrapped__)
    monkeypatch.setattr(_library, "_said_by", lambda function: theirs)
    message = rf"built from other sources than are installed \({difference} was expected\)"
    with pytest.warns(RuntimeWarning, match=message) as caught:
        assert _library._load() is None
    assert len(caught) == 1
    assert "pip install --force-reinstall" in str(caught[0].message)


def test_with_a_refused_library_results_are_right(monkeypatch):
    with pytest.warns(RuntimeWarning, match="built from other sources"):
        monkeypatch.setattr(_library, "_said_by", lambda function: "version 0")
        refused = _library._load.__wrapped__()
    monkeypatch.setattr(_library, "_load", lambda: refused)
    assert _library.native_ops() is None
    state = tables.new_state(SGD, np.zeros([3, 2]))
    batch = tables.slices(np.array([2, 0, 2]), np.ones([3, 2], np.float32))
    apply_rows(SGD, [state], [batch], tables.settings())
    np.testing.assert_array_equal(state.table.numpy(), [[-1, -1], [0, 0], [-2, -2]])


@pytest.mark.parametrize(
    "policies, message",
    [
        (["drift=2"], "a policy has no field 'drift'"),
        (["window=two"], "expected a number, got 'two'"),
        (["updates_per_sleep=0"], "must be at least 1"),
        ([], "must be at least 1"),
    ],
)
def test_a_policy_that_the_library_does_not_know_is_refused(policies, message):
    state = tables.new_state(SGD, np.zeros([3, 2]), wake_steps=[0, 0, 0])
    arguments = pool_arguments([state]) | {"policies": policies}
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        _library.native_ops().slipstream_live_slices(
            **arguments,
            indices=[tf.constant([1])],
            grads=[tf.ones([1, 2])],
            step=tf.constant(1, tf.int64),
            table_names=["a"],
            num_rows=[3],
        )


# TensorFlow keeps eager kernels by their attributes, of long strings by their ends alone.
def test_eager_steps_use_the_hyperparameters_of_their_own_rule():
    rows = []
    for l2 in (0.12345678901234567, 0.82345678901234567):
        rule = update_rules.Ftrl(-0.5123456789012345, 0.25, 0.0123456789012345, l2, 0.25, 0.5)
        state = tables.new_state(rule, np.ones([1, 2]))
        one = tables.slices(np.array([0]), np.ones([1, 2], np.float32))
        apply_rows(rule, [state], [one], tables.settings())
        rows.append(float(state.table[0, 0]))
    assert rows[0] != rows[1]


def test_eager_steps_use_the_policy_of_their_own_table():
    policies = [
        StalenessPolicy(min_updates=1, window=50, drift_metric=one) for one in ("coherence", "l2")
    ]
    paths = []
    for policy in policies:
        state = tables.new_state(SGD, np.zeros([1, 2]), wake_steps=[0])
        object.__setattr__(state, "policy", policy)
        one = tables.slices(np.array([0]), np.ones([1, 2], np.float32))
        apply_rows(SGD, [state], [one], tables.settings())
        paths.append(float(state.pool_floats[0, -1]))
    assert paths == [2.0, 0.0]
