"""Rows of fields: the op of ours finds those that TensorFlow's ops find."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tf_slipstream import SlipstreamEmbeddingCollection
from tf_slipstream.export.stock_ops import check_stock_ops
from tf_slipstream.field_layout import FieldLayout
from tf_slipstream.ops import _library
from tf_slipstream.ops.field_rows import field_rows

pytestmark = pytest.mark.skipif(
    _library.native_ops() is None, reason="without native ops TensorFlow's own find rows"
)

OP = "Slipstream>FieldRows"


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    before=st.lists(st.integers(0, 5), max_size=2),
    behind=st.lists(st.integers(0, 5), max_size=2),
    dtype=st.sampled_from([np.int32, np.int64]),
    is_large=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_rows_of_an_array_and_of_fields_are_those_of_tensorflow(
    sizes, before, behind, dtype, is_large, seed
):
    sizes = [2**31, *sizes] if is_large else sizes
    layout, rng = FieldLayout(sizes), np.random.default_rng(seed)
    parts = [rng.integers(0, min(9, size), [*before, *behind]).astype(dtype) for size in sizes]
    axis = len(before)
    array = np.stack(parts, axis=axis)
    # Of nothing TensorFlow's largest id is 0: there is no difference to be seen.
    found = layout.rows_of_array("fields", tf.constant(array), axis, is_native=True)
    expected = layout.rows_of_array("fields", tf.constant(array), axis)
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)
    places = rng.permutation(len(sizes))[: max(1, len(sizes) // 2)].tolist()
    parts = [tf.constant(parts[place]) for place in places]
    found = layout.rows_of_fields("fields", places, parts, is_native=True)
    expected = layout.rows_of_fields("fields", places, parts)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_fields_of_different_dtypes_have_rows_of_the_longer():
    layout = FieldLayout([5, 5])
    parts = [tf.constant([1, 2], tf.int32), tf.constant([[3], [4]], tf.int64)]
    rows = layout.rows_of_fields("fields", [0, 1], parts, is_native=True)
    assert rows.dtype == tf.int64
    np.testing.assert_array_equal(rows, [1, 2, 8, 9])


@pytest.mark.parametrize(
    "ids, axis", [([[[1, 2, 3]]], 1), ([[[1, 2]]], 2), ([[1, 2]], -1), ([[1], [2], [3]], -1)]
)
def test_other_numbers_of_fields_are_refused(ids, axis):
    ids = [tf.constant(one) for one in ids]
    with pytest.raises(tf.errors.InvalidArgumentError, match="one per field|2 fields along axis"):
        field_rows(ids, [0, 5], [5, 5], ["a", "b"], "user", tf.int32, axis)


def test_training_has_the_op_and_a_saved_function_of_serving_has_not(tmp_path):
    layer = SlipstreamEmbeddingCollection({"a": 5, "b": 4}, 3)
    layer.build()
    array = tf.TensorSpec([None, 2], tf.int64)
    fields = {"a": tf.TensorSpec([None], tf.int64), "b": tf.TensorSpec([None], tf.int32)}
    module = tf.Module()
    module.layer_weights = [layer._table()]
    for name, specs in (("array", array), ("fields", fields)):
        train = tf.function(lambda ids: layer(ids, training=True)).get_concrete_function(specs)
        assert OP in {op.type for op in train.graph.get_operations()}
        serve = tf.function(lambda ids: layer(ids, training=False), input_signature=[specs])
        setattr(module, name, serve)
    tf.saved_model.save(module, str(tmp_path))
    check_stock_ops(str(tmp_path))
