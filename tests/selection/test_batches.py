"""Taking inputs out of batches of every kind, and having them wait."""

import numpy as np
import pytest
import tensorflow as tf

from tf_slipstream.selection import batches


def batch(first, num):
    """Returns inputs `first`, ..., of all kinds; an input can be told by any of its parts."""
    numbers = np.arange(first, first + num)
    bags = tf.ragged.constant([[n] * (n % 3) for n in numbers], tf.int64, ragged_rank=1)
    deep = tf.ragged.constant([[[n]] * (n % 2) for n in numbers], tf.int32, ragged_rank=2)
    return {
        "dense": (tf.constant(numbers), tf.cast(tf.constant(numbers)[:, tf.newaxis], tf.float32)),
        "text": tf.constant([str(n) for n in numbers]),
        "ragged": bags,
        "deep": deep,
        "sparse": bags.to_sparse(),
        "none": None,
    }


def dense(structure):
    """Returns a batch as lists, an input after the other."""

    def lists(value):
        if isinstance(value, tf.SparseTensor):
            value = tf.sparse.to_dense(value)
            value = tf.RaggedTensor.from_tensor(value, padding=0)
        return value.to_list() if isinstance(value, tf.RaggedTensor) else value.numpy().tolist()

    return {
        "dense": [lists(part) for part in structure["dense"]],
        **{name: lists(structure[name]) for name in ("text", "ragged", "deep", "sparse")},
    }


@pytest.mark.parametrize("places", [[], [0], [9], [1, 2, 8], list(range(10))])
def test_inputs_are_taken_with_all_that_is_theirs(places):
    taken = dense(batches.take(batch(5, 10), tf.constant(places, tf.int64)))
    expected = dense(batch(5, 10))
    for name in ("text", "ragged", "deep", "sparse"):
        assert taken[name] == [expected[name][place] for place in places], name
    for part, of_all in zip(taken["dense"], expected["dense"]):
        assert part == [of_all[place] for place in places]


def test_two_batches_are_joined():
    assert dense(batches.join(batch(0, 4), batch(4, 3))) == dense(batch(0, 7))


@pytest.mark.parametrize("is_graph", [False, True])
def test_what_waits_is_what_was_written(is_graph):
    waiting = batches.Waiting(batch(0, 4))

    def add(structure):
        waiting.write(batches.join(waiting.read(), structure))

    add = tf.function(add) if is_graph else add
    assert batches.size(waiting.read()) == 0
    for first, num in ((0, 4), (4, 1), (5, 6)):
        add(batch(first, num))
    assert dense(waiting.read()) == dense(batch(0, 11))


def test_a_checkpoint_has_what_waits(tmp_path):
    waiting = batches.Waiting(batch(0, 4))
    waiting.write(batch(3, 5))
    path = tf.train.Checkpoint(one=waiting).write(str(tmp_path / "it"))
    restored = batches.Waiting(batch(0, 4))
    tf.train.Checkpoint(one=restored).read(path).assert_consumed()
    assert dense(restored.read()) == dense(batch(3, 5))


def test_inputs_of_no_fixed_length_cannot_wait():
    spec = tf.TensorSpec([None, None], tf.int64)

    @tf.function(input_signature=[spec])
    def wait(ids):
        batches.Waiting((ids, None))
        return 0

    with pytest.raises(ValueError, match="batches='shrunk'"):
        wait(tf.zeros([2, 3], tf.int64))
