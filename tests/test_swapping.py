"""The ways between stock models and ours that docs/migration/keras.md tells."""

import numpy as np
import pytest
import tensorflow as tf

import tf_slipstream as slipstream
from tests.models import random_table
from tf_slipstream import SlipstreamEmbedding, SlipstreamOptimizer
from tf_slipstream._compat import IS_KERAS_3, keras

IDS = np.random.default_rng(0).integers(10, size=[32, 3])
LABELS = (IDS[:, :1] % 2).astype("float32")


def functional_model(layer_class):
    """Two tables, one of them looked up twice, and a model within the model."""
    ids = keras.Input([3], dtype="int64")
    user, item = (layer_class(10, 4, name=name) for name in ("user", "item"))
    inner_ids = keras.Input([3], dtype="int64")
    inner_item = layer_class(10, 2, mask_zero=True, embeddings_regularizer="l2", name="inner_item")
    inner = keras.Model(inner_ids, inner_item(inner_ids), name="inner")
    rows = keras.layers.Concatenate()([user(ids), item(ids), user(ids), inner(ids)])
    rows = keras.layers.BatchNormalization()(keras.layers.Flatten()(rows))
    return keras.Model(ids, keras.layers.Dense(1, activation="sigmoid")(rows), name="clicks")


def sequential_model(layer_class):
    layers = [layer_class(10, 4, name="item"), keras.layers.Flatten(), keras.layers.Dense(1)]
    return keras.Sequential([keras.Input([3], dtype="int64"), *layers])


MODELS = {"functional": functional_model, "sequential": sequential_model}


def trained(model):
    model.compile("adam", loss="mse")
    model.fit(IDS, LABELS, verbose=0)
    return model


def kinds_of(model):
    """Returns the classes of the embeddings of a model, and of those within it, in order."""
    found = []
    for layer in model.layers:
        found += kinds_of(layer) if isinstance(layer, keras.Model) else []
        found += [type(layer)] if isinstance(layer, keras.layers.Embedding) else []
    return found


def assert_predicts_as(model, other):
    np.testing.assert_array_equal(model(IDS), other(IDS))


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_model_is_swapped_in_and_out_again(make):
    stock = trained(make(keras.layers.Embedding))
    ours = slipstream.swap_in(stock)
    assert set(kinds_of(ours)) == {SlipstreamEmbedding}
    assert_predicts_as(ours, stock)
    again = slipstream.swap_out(ours)
    for one, other in zip(again.layers, stock.layers, strict=True):
        if isinstance(other, keras.layers.Embedding):
            assert type(one) is keras.layers.Embedding
            assert one.get_config() == other.get_config()
    assert kinds_of(again) == kinds_of(stock)
    assert_predicts_as(again, stock)


def test_arguments_of_the_layers_stay():
    ours = slipstream.swap_in(functional_model(keras.layers.Embedding), policy="balanced")
    layer = ours.get_layer("inner").get_layer("inner_item")
    assert layer.mask_zero
    assert isinstance(layer.embeddings_regularizer, keras.regularizers.L2)
    assert layer.policy == ours.get_layer("user").policy == slipstream.StalenessPolicy.balanced()


def test_a_swapped_model_trains():
    ours = slipstream.swap_in(trained(functional_model(keras.layers.Embedding)))
    ours.compile(SlipstreamOptimizer("adam"), loss="binary_crossentropy")
    before = ours.get_layer("user").get_weights()[0]
    ours.fit(IDS, LABELS, verbose=0)
    assert set(ours.optimizer.tables) == {"user", "item", "inner_item"}
    assert np.abs(ours.get_layer("user").get_weights()[0] - before).max() > 0


def test_only_the_layers_named_are_swapped():
    stock = functional_model(keras.layers.Embedding)
    ours = slipstream.swap_in(stock, names=["user", "inner_item"])
    assert type(ours.get_layer("item")) is keras.layers.Embedding
    assert kinds_of(ours).count(SlipstreamEmbedding) == 2
    assert_predicts_as(ours, stock)
    with pytest.raises(ValueError, match=r"no `keras.layers.Embedding` named \['tag'\]"):
        slipstream.swap_in(stock, names=["user", "tag"])


@pytest.mark.parametrize("file", ["old.weights.h5", *([] if IS_KERAS_3 else ["old"])])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_weights_of_a_stock_model_are_loaded_and_written(make, file, tmp_path):
    stock, ours = trained(make(keras.layers.Embedding)), make(SlipstreamEmbedding)
    stock.save_weights(str(tmp_path / file))
    read = slipstream.swap_out(ours)
    read.load_weights(str(tmp_path / file))
    ours.set_weights(read.get_weights())
    assert_predicts_as(ours, stock)

    trained(ours)
    slipstream.swap_out(ours).save_weights(str(tmp_path / f"new_{file}"))
    fresh = make(keras.layers.Embedding)
    fresh.load_weights(str(tmp_path / f"new_{file}"))
    assert_predicts_as(fresh, ours)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_checkpoint_of_one_loads_into_the_other(make, tmp_path):
    classes = (keras.layers.Embedding, SlipstreamEmbedding)
    for saved_class, loaded_class in (classes, classes[::-1]):
        saved, loaded = trained(make(saved_class)), make(loaded_class)
        path = tf.train.Checkpoint(model=saved).write(str(tmp_path / saved_class.__name__))
        tf.train.Checkpoint(model=loaded).read(path).assert_existing_objects_matched()
        assert_predicts_as(loaded, saved)


@pytest.mark.parametrize("file", ["old.keras", "old.h5"])
def test_a_file_of_a_stock_model_becomes_ours(file, tmp_path):
    stock = trained(functional_model(keras.layers.Embedding))
    stock.save(tmp_path / file)
    loaded = keras.models.load_model(tmp_path / file, compile=False)
    ours = slipstream.swap_in(loaded)
    assert set(kinds_of(ours)) == {SlipstreamEmbedding}
    assert_predicts_as(ours, stock)


def test_a_file_of_ours_becomes_a_stock_model(tmp_path):
    ours = trained(functional_model(SlipstreamEmbedding))
    ours.save(tmp_path / "ours.keras")
    stock = slipstream.swap_out(keras.models.load_model(tmp_path / "ours.keras", compile=False))
    assert set(kinds_of(stock)) == {keras.layers.Embedding}
    assert_predicts_as(stock, ours)


def test_custom_objects_do_what_keras_does_with_them(tmp_path):
    """In an .h5 file the class is replaced; in a .keras file Keras's own classes are Keras's."""
    stock = trained(sequential_model(keras.layers.Embedding))
    ours = {"Embedding": SlipstreamEmbedding}
    for file, kind in (("old.h5", SlipstreamEmbedding), ("old.keras", keras.layers.Embedding)):
        stock.save(tmp_path / file)
        loaded = keras.models.load_model(tmp_path / file, custom_objects=ours, compile=False)
        assert kinds_of(loaded) == [kind]
        assert_predicts_as(loaded, stock)


def test_the_error_of_a_stock_file_says_what_to_do(tmp_path):
    functional_model(keras.layers.Embedding).save_weights(tmp_path / "old.weights.h5")
    with pytest.raises(ValueError, match="SlipstreamEmbedding 'user'.*swap_out"):
        functional_model(SlipstreamEmbedding).load_weights(tmp_path / "old.weights.h5")


class Clicks(keras.Model):
    def __init__(self, layer_class):
        super().__init__()
        self.user, self.output_layer = layer_class(10, 4), keras.layers.Dense(1)

    def call(self, ids):
        return self.output_layer(tf.reduce_sum(self.user(ids), axis=1))


def test_weights_of_a_subclassed_model_are_copied():
    stock, ours = trained(Clicks(keras.layers.Embedding)), Clicks(SlipstreamEmbedding)
    ours(IDS)
    ours.set_weights(stock.get_weights())
    assert_predicts_as(ours, stock)
    for swap in (slipstream.swap_in, slipstream.swap_out):
        with pytest.raises(ValueError, match="is a Clicks, whose layers Keras cannot replace"):
            swap(stock)


def test_a_layer_that_cannot_be_swapped_is_refused():
    combined = keras.Sequential([SlipstreamEmbedding(10, 3, combiner="sum", name="tags")])
    combined.build([None, 2])
    with pytest.raises(ValueError, match="'tags' has a `combiner`"):
        slipstream.swap_out(combined)
    refused = {"lora_rank": 2} if IS_KERAS_3 else {"sparse": True}
    stock = keras.Sequential([keras.Input([2]), keras.layers.Embedding(10, 3, **refused)])
    message = f"^Layer '{stock.layers[0].name}' cannot be swapped: SlipstreamEmbedding does not"
    with pytest.raises(ValueError, match=f"{message} take `{next(iter(refused))}`"):
        slipstream.swap_in(stock)


def test_subclasses_stay():
    class Mine(keras.layers.Embedding):
        pass

    class Ours(SlipstreamEmbedding):
        pass

    for kind, swap in ((Mine, slipstream.swap_in), (Ours, slipstream.swap_out)):
        model = sequential_model(kind)
        model.layers[0].set_weights([random_table(10, 4)])
        assert kinds_of(swap(model)) == [kind]
        assert_predicts_as(swap(model), model)
