"""Every public class that is a Keras layer, optimizer or callback."""

import inspect
import json
import re

import numpy as np
import pytest
import tensorflow as tf

import tf_slipstream
from tests.models import embedding_of, random_table, slices
from tf_slipstream import (
    DynamicVocabulary,
    InputSelector,
    Pilot,
    RowWiseAdagrad,
    SelectiveModel,
    SlipstreamEmbedding,
    SlipstreamEmbeddingCollection,
    SlipstreamOptimizer,
    StalenessPolicy,
    WideModel,
)
from tf_slipstream._compat import keras

# Callbacks, which Keras does not serialise either, have no config.
BASES = (keras.layers.Layer, keras.optimizers.Optimizer)

# Around a model, which is what is saved of them, or a part of one of these: tests/selection.
FOR_CHOOSING_INPUTS = {InputSelector, Pilot, SelectiveModel, WideModel}

# One with no argument left at its default, as far as that makes sense, and the plainest.
KERAS_OBJECTS = {
    DynamicVocabulary: [
        lambda: DynamicVocabulary(
            20,
            admit_after=3,
            forget_after=100,
            num_oov=2,
            dtype="int64",
            padding_id=0,
            max_id_bytes=20,
            name="ids",
            trainable=False,
        ),
        lambda: DynamicVocabulary(20),
    ],
    RowWiseAdagrad: [
        lambda: RowWiseAdagrad(
            0.5,
            initial_accumulator_value=0.25,
            epsilon=0.125,
            name="rows",
            weight_decay=0.5,
            clipnorm=2.0,
        ),
        lambda: RowWiseAdagrad(
            keras.optimizers.schedules.ExponentialDecay(0.5, decay_steps=10, decay_rate=0.5)
        ),
        RowWiseAdagrad,
    ],
    SlipstreamEmbedding: [
        lambda: SlipstreamEmbedding(
            10,
            3,
            embeddings_initializer=keras.initializers.RandomNormal(stddev=0.5, seed=1),
            embeddings_regularizer=keras.regularizers.L2(0.25),
            embeddings_constraint=keras.constraints.MaxNorm(2.0, axis=1),
            mask_zero=True,
            combiner="sqrtn",
            policy=StalenessPolicy(on_stale="skip", min_updates=7),
            name="user",
            dtype="mixed_bfloat16",
            trainable=False,
        ),
        lambda: SlipstreamEmbedding(10, 3),
    ],
    SlipstreamEmbeddingCollection: [
        lambda: SlipstreamEmbeddingCollection(
            {"user": 10, "friend": "user", "other": "user"},
            3,
            combiner="sqrtn",
            policy=StalenessPolicy(on_stale="skip", min_updates=7),
            embeddings_initializer={"user": keras.initializers.RandomNormal(stddev=0.5, seed=1)},
            embeddings_regularizer=keras.regularizers.L2(0.25),
            embeddings_constraint=keras.constraints.MaxNorm(2.0, axis=1),
            mask_zero=True,
            name="fields",
            dtype="mixed_bfloat16",
            trainable=False,
        ),
        lambda: SlipstreamEmbeddingCollection({"a": "b", "b": 10, "c": "b"}, 3),
    ],
    SlipstreamOptimizer: [
        lambda: SlipstreamOptimizer(
            keras.optimizers.Adam(0.5, epsilon=0.125),
            policy="aggressive",
            table_optimizer=RowWiseAdagrad(0.5, epsilon=0.125),
            name="ours",
        ),
        lambda: SlipstreamOptimizer("sgd", policy="default", table_optimizer="adam"),
        lambda: SlipstreamOptimizer(keras.optimizers.AdamW(0.5, weight_decay=0.25, clipvalue=1.0)),
        lambda: SlipstreamOptimizer(keras.optimizers.SGD()),
    ],
}
MAKERS = [
    pytest.param(make, id=f"{cls.__name__} {number}")
    for cls, makers in KERAS_OBJECTS.items()
    for number, make in enumerate(makers)
]


def public_keras_classes():
    values = [getattr(tf_slipstream, name) for name in tf_slipstream.__all__]
    return [one for one in values if inspect.isclass(one) and issubclass(one, BASES)]


def parts_of_docstring(cls):
    """Returns a dict from a docstring's headings ("Args:", ...) to what is below them."""
    parts = re.split(r"^(\w[\w ]*):$", inspect.getdoc(cls), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def test_every_public_keras_class_is_here():
    assert set(public_keras_classes()) == set(KERAS_OBJECTS) | FOR_CHOOSING_INPUTS


@pytest.mark.parametrize("make", MAKERS)
def test_from_config_makes_the_same_again(make):
    made = make()
    again = type(made).from_config(made.get_config())
    assert type(again) is type(made)
    assert again.get_config() == made.get_config()


@pytest.mark.parametrize("make", MAKERS)
def test_an_object_survives_json_without_custom_objects(make):
    made = make()
    serialized = json.loads(json.dumps(keras.saving.serialize_keras_object(made)))
    again = keras.saving.deserialize_keras_object(serialized)
    assert type(again) is type(made)
    assert again.get_config() == made.get_config()


@pytest.mark.parametrize("cls", KERAS_OBJECTS)
def test_a_class_is_registered_under_the_packages_name(cls):
    name = f"tf_slipstream>{cls.__name__}"
    assert keras.saving.get_registered_name(cls) == name
    assert keras.saving.get_registered_object(name) is cls


@pytest.mark.parametrize("make", MAKERS)
def test_it_does_the_same_in_a_function(make):
    def output(decorate):
        made = make()
        ids = tf.constant([[1, 2, 2], [9, 0, 1]])
        if isinstance(made, keras.layers.Layer):
            made.build(None)
            if isinstance(made, DynamicVocabulary):
                made.set_ids([9, 1])
            else:
                made.set_weights([random_table()])
            return decorate(lambda: made(ids))().numpy()
        table = embedding_of(random_table()).weights[0]

        @decorate
        def step():
            gradient = slices([1, 4, 1], np.ones([3, 3]), 10)
            made.apply_gradients([(gradient, table)])

        for _ in range(3):
            step()
        return table.numpy()

    # A graph may be rewritten, and its few operations then round differently.
    tolerance = 16 * np.finfo("float32").eps
    np.testing.assert_allclose(
        output(tf.function), output(lambda f: f), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("cls", KERAS_OBJECTS)
def test_a_docstring_names_every_argument(cls):
    arguments = parts_of_docstring(cls)["Args"]
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        if name != "self":
            stars = r"\*\*" if parameter.kind is parameter.VAR_KEYWORD else ""
            assert re.search(rf"^ +{stars}{name}: \S", arguments, re.MULTILINE), name


@pytest.mark.parametrize("cls", KERAS_OBJECTS)
def test_a_docstring_has_an_example_that_runs(cls):
    example = parts_of_docstring(cls)["Example"]
    (code,) = re.findall(r"```python\n(.*?)```", example, flags=re.DOTALL)
    assert f"slipstream.{cls.__name__}(" in code
    model = keras.Sequential([keras.layers.Dense(1)])
    exec(code, {"slipstream": tf_slipstream, "keras": keras, "tf": tf, "model": model})
