"""Our kernel of TensorFlow's ResourceGather does all that the stock one does."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.python.framework import kernels

from tf_slipstream.ops._library import native_ops

pytestmark = pytest.mark.skipif(native_ops() is None, reason="without native ops there is none")


@st.composite
def lookups(draw):
    """Draws a table's and ids' shapes, equal in their first `batch_dims` axes."""
    batch_shape = draw(st.lists(st.integers(0, 3), max_size=2))
    num_rows = draw(st.integers(1, 40))
    row_shape = draw(st.lists(st.integers(0, 70), max_size=2))
    ids_shape = draw(st.lists(st.integers(0, 60), max_size=2))
    return (*batch_shape, num_rows, *row_shape), (*batch_shape, *ids_shape), len(batch_shape)


@given(
    shapes=lookups(),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    index_dtype=st.sampled_from(["int32", "int64"]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=150, deadline=None)
def test_equals_stock_gather_of_a_tensor(shapes, dtype, index_dtype, seed):
    table_shape, ids_shape, batch_dims = shapes
    rng = np.random.default_rng(seed)
    table = tf.Variable(tf.cast(rng.standard_normal(table_shape), dtype))
    ids = tf.constant(rng.integers(table_shape[batch_dims], size=ids_shape), index_dtype)
    # Of a tensor, GatherV2: another op, which is TensorFlow's.
    expected = tf.gather(tf.convert_to_tensor(table), ids, batch_dims=batch_dims)
    found = tf.raw_ops.ResourceGather(
        resource=table.handle, indices=ids, dtype=table.dtype, batch_dims=batch_dims
    )
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_array_equal(found.numpy(), expected.numpy())


@pytest.mark.parametrize("num_lookups", [3, 100_000])
def test_names_the_first_bad_id(num_lookups):
    table = tf.Variable(tf.zeros([50, 16]))
    ids = np.zeros((num_lookups, 2), np.int64)
    ids[1:, 1] = 50
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"indices\[1,1\] = 50 .*\[0, 50\)"):
        tf.gather(table, ids)


def test_batch_axes_that_differ_are_an_error():
    table = tf.Variable(tf.zeros([2, 5, 4]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="differ in their first 1"):
        tf.raw_ops.ResourceGather(
            resource=table.handle, indices=[[1], [2], [3]], dtype=tf.float32, batch_dims=1
        )


def test_a_dense_read_keeps_its_value_when_rows_are_written_later():
    """Unlike the stock kernel ours does not make the variable copy-on-read."""
    table = tf.Variable(tf.zeros([50, 4]))
    tf.gather(table, [1, 2])
    before = table.read_value()
    table.scatter_add(tf.IndexedSlices(tf.ones([2, 4]), [1, 2]))
    table.assign_add(tf.ones([50, 4]))
    assert not before.numpy().any()
    np.testing.assert_array_equal(tf.gather(table, [0, 1]).numpy(), [[1] * 4, [2] * 4])


def test_is_the_kernel_that_tensorflow_chooses():
    registered = kernels.get_registered_kernels_for_op("ResourceGather").kernel
    types = {
        tuple(sorted((c.name, tuple(c.allowed_values.list.type)) for c in kernel.constraint))
        for kernel in registered
        if kernel.device_type == "CPU" and kernel.priority > 0
    }
    assert types == {
        (("Tindices", (index.as_datatype_enum,)), ("dtype", (dtype.as_datatype_enum,)))
        for index in (tf.int32, tf.int64)
        for dtype in (tf.float32, tf.bfloat16)
    }
