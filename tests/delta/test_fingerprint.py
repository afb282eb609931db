"""FarmHash and `fingerprint.pb` against TensorFlow's own."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.fingerprint_pb2 import FingerprintDef

from tf_slipstream.delta.fingerprint import farm_fingerprint, updated_fingerprint


@pytest.mark.parametrize("sizes", [range(0, 9), range(9, 33), range(33, 66), [127, 128, 129, 4097]])
def test_hashes_are_those_of_tensorflow(sizes):
    strings = [np.random.default_rng(size).bytes(size) for size in sizes]
    expected = tf.fingerprint(tf.constant(strings)[:, tf.newaxis]).numpy()
    actual = [list(farm_fingerprint(data).to_bytes(8, "little")) for data in strings]
    np.testing.assert_array_equal(actual, expected)


def test_tensorflow_reads_the_new_fingerprint(tmp_path):
    module = tf.Module()
    module.variable = tf.Variable([1.0])
    tf.saved_model.save(module, str(tmp_path))
    read = tf.saved_model.experimental.read_fingerprint
    path, before = tmp_path / "fingerprint.pb", read(str(tmp_path))
    index = (tmp_path / "variables" / "variables.index").read_bytes()
    assert before.checkpoint_hash == farm_fingerprint(index)
    path.write_bytes(updated_fingerprint(path.read_bytes(), b"another index", 2**127 + 1))
    after = read(str(tmp_path))
    assert after.checkpoint_hash == farm_fingerprint(b"another index")
    if "uuid" in FingerprintDef.DESCRIPTOR.fields_by_name:  # as since TensorFlow 2.19
        assert f"{2**127 + 1}".encode() in path.read_bytes()
    for name in ("saved_model_checksum", "graph_def_program_hash", "signature_def_hash"):
        assert getattr(after, name) == getattr(before, name)
