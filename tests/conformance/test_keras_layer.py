"""Keras's own test of a layer, with the arguments that Keras has for its `Embedding`.

Keras 3 has it as `run_layer_test`, tf_keras as `layer_test`; both come with the wheel. What is left
out: LoRA and quantization (refused), and `sparse=True` of tf_keras (refused).
"""

import numpy as np
import pytest

from tests.models import ids_input
from tf_slipstream import SlipstreamEmbedding, SlipstreamEmbeddingCollection
from tf_slipstream._compat import IS_KERAS_3

EXPECTED = {
    "expected_num_trainable_weights": 1,
    "expected_num_non_trainable_weights": 0,
    "expected_num_seed_generators": 0,
    "expected_num_losses": 0,
    "supports_masking": False,
}
PAIRS = {"input_shape": (2, 3), "input_dtype": "int32", "expected_output_shape": (2, 3, 4)}

# The arguments of the layer less its dimensions, 5 and 4, and those of the test.
KERAS_3_CASES = {
    "vector": (
        {},
        {"input_shape": (2,), "input_dtype": "int32", "expected_output_shape": (2, 4)},
    ),
    "masking": (
        {"mask_zero": True},
        PAIRS | {"input_dtype": "int64", "supports_masking": True, "expected_mask_shape": (2, 3)},
    ),
    "sparse": ({}, PAIRS | {"input_sparse": True}),
    "sparse masking": (
        {"mask_zero": True},
        PAIRS | {"input_sparse": True, "supports_masking": True, "expected_mask_shape": (2, 3)},
    ),
    "ragged": (
        {},
        PAIRS
        | {
            "input_ragged": True,
            "expected_output_ragged": True,
            "expected_output_shape": (2, None, 4),
        },
    ),
    "regularizer": ({"embeddings_regularizer": "l2"}, PAIRS | {"expected_num_losses": 1}),
    "constraint": ({"embeddings_constraint": "non_neg"}, PAIRS),
    "initializer": ({"embeddings_initializer": "zeros"}, PAIRS),
    "combiner": ({"combiner": "mean"}, PAIRS | {"expected_output_shape": (2, 4)}),
    "sparse combiner": (
        {"combiner": "sum"},
        PAIRS | {"input_sparse": True, "expected_output_shape": (2, 4)},
    ),
    "padding in a combiner": (
        {"combiner": "sqrtn", "mask_zero": True},
        PAIRS | {"expected_output_shape": (2, 4), "supports_masking": True},
    ),
}

# The same of a collection of three fields of 5 rows.
COLLECTION_CASES = {
    "array": ({}, PAIRS | {"expected_output_shape": (2, 3, 4)}),
    "masking": (
        {"mask_zero": True},
        PAIRS | {"input_dtype": "int64", "supports_masking": True, "expected_mask_shape": (2, 3)},
    ),
    "regularizer": ({"embeddings_regularizer": "l2"}, PAIRS | {"expected_num_losses": 1}),
    "combiner": (
        {"combiner": "mean"},
        {
            "input_shape": (2, 3, 2),
            "input_dtype": "int32",
            "expected_output_shape": (2, 3, 4),
        },
    ),
}

TF_KERAS_CASES = {
    "length": ({"input_length": 2}, (3, 2)),
    "masking": ({"mask_zero": True}, (3, 2)),
    "masking of rank 3": ({"mask_zero": True}, (3, 4, 2)),
    "lengths": ({"mask_zero": True, "input_length": (None, 2)}, (3, 4, 2)),
    "regularizer": ({"embeddings_regularizer": "l2"}, (3, 2)),
    "constraint": ({"embeddings_constraint": "non_neg"}, (3, 2)),
    "combiner": ({"combiner": "mean"}, (3, 2)),
}


@pytest.mark.skipif(not IS_KERAS_3, reason="`run_layer_test` is of Keras 3")
@pytest.mark.parametrize("case", KERAS_3_CASES)
def test_it_passes_the_test_of_keras_3(case):
    from keras.src.testing import TestCase

    arguments, expected = KERAS_3_CASES[case]
    if case == "ragged":
        ids_input(case, None)  # skips under a Keras that has no such input
    dims = {"input_dim": 5, "output_dim": 4}
    TestCase().run_layer_test(SlipstreamEmbedding, dims | arguments, **EXPECTED | expected)


@pytest.mark.skipif(not IS_KERAS_3, reason="`run_layer_test` is of Keras 3")
@pytest.mark.parametrize("case", COLLECTION_CASES)
def test_a_collection_passes_the_test_of_keras_3(case):
    from keras.src.testing import TestCase

    arguments, expected = COLLECTION_CASES[case]
    dims = {"input_dims": [5, 5, 5], "output_dim": 4}
    TestCase().run_layer_test(
        SlipstreamEmbeddingCollection, dims | arguments, **EXPECTED | expected
    )


@pytest.mark.skipif(IS_KERAS_3, reason="`layer_test` is of tf_keras")
@pytest.mark.parametrize("mask_zero", [False, True])
def test_a_collection_passes_the_test_of_tf_keras(mask_zero):
    from tf_keras.src.testing_infra.test_utils import layer_test

    layer_test(
        SlipstreamEmbeddingCollection,
        kwargs={"input_dims": [10, 10], "output_dim": 4, "mask_zero": mask_zero},
        input_data=np.random.default_rng(0).integers(10, size=(3, 2)).astype("int32"),
        expected_output_dtype="float32",
        expected_output_shape=(None, 2, 4),
        supports_masking=mask_zero,
        custom_objects={"SlipstreamEmbeddingCollection": SlipstreamEmbeddingCollection},
    )


@pytest.mark.skipif(IS_KERAS_3, reason="`layer_test` is of tf_keras")
@pytest.mark.parametrize("case", TF_KERAS_CASES)
def test_it_passes_the_test_of_tf_keras(case):
    from tf_keras.src.testing_infra.test_utils import layer_test

    arguments, shape = TF_KERAS_CASES[case]
    has_bags = "combiner" in arguments
    layer_test(
        SlipstreamEmbedding,
        kwargs={"input_dim": 10, "output_dim": 4, **arguments},
        input_data=np.random.default_rng(0).integers(10, size=shape).astype("int32"),
        expected_output_dtype="float32",
        expected_output_shape=(None, *shape[1 : -1 if has_bags else None], 4),
        supports_masking="mask_zero" in arguments,
        custom_objects={"SlipstreamEmbedding": SlipstreamEmbedding},
    )
