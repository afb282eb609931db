"""What is deleted is gone: no graph, hook or registry keeps a model, its table or its slots."""

import gc
import weakref

import pytest
import tensorflow as tf

from tests.models import click_data, click_model, fit, in_turn, num_held, sleepy, train_steps
from tf_slipstream import SkipGuard, SkipHistory, SlipstreamEmbedding, SlipstreamOptimizer, export
from tf_slipstream._compat import keras, tf_variable
from tf_slipstream.engine import registry

NUM_ROWS = 20
DATA = click_data(16 * 20, num_rows=NUM_ROWS)


def make(num_rows=NUM_ROWS, dim=4, inner="adam", **compile_arguments):
    layer = SlipstreamEmbedding(num_rows, dim, name="user")
    optimizer = SlipstreamOptimizer(inner, policy=sleepy())
    return click_model(layer, optimizer, **compile_arguments)


def by_fit(model):
    fit(model, DATA, callbacks=[SkipHistory(), SkipGuard(monitor="loss")], validation_data=DATA)


def by_eager_fit(model):
    model.compile(model.optimizer, loss="binary_crossentropy", run_eagerly=True)
    fit(model, DATA)


def by_single_steps(model):
    train_steps(model, DATA, 0, 20)
    assert num_held(model.optimizer)


def loop(model, decorate):
    loss_of = keras.losses.BinaryCrossentropy()
    variables = model.trainable_variables

    @decorate
    def step(ids, labels):
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(ids, training=True))
        model.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))

    # Keras 3 makes an optimizer's variables outside of functions alone.
    model.optimizer.build(variables)
    for start in range(0, 320, 16):
        batch = slice(start, start + 16)
        step(tf.constant(DATA[0][batch]), tf.constant(DATA[1][batch]))


def by_an_eager_loop(model):
    loop(model, lambda function: function)


def by_a_function(model):
    loop(model, tf.function)


WAYS = [by_fit, by_eager_fit, by_single_steps, by_an_eager_loop, by_a_function]


def references(model):
    """Returns weak references to what takes memory, and to what would keep it."""
    (state,) = model.optimizer.tables.values()
    variables = [state.table, *state.slots, state.row_states, state.pool_ints, state.pool_floats]
    parts = [*variables, model, model.layers[1], model.optimizer, model.optimizer.engine]
    return [weakref.ref(part) for part in parts]


def collect():
    for _ in range(3):
        gc.collect()


def is_all_gone(found):
    collect()
    return [type(one()).__name__ for one in found if one() is not None] == []


@pytest.mark.parametrize("way, inner", in_turn(WAYS, ["adam", "adagrad"]))
def test_a_model_that_was_trained_frees_its_table_and_slots(way, inner):
    collect()
    num_before = len(registry._specs._entries), len(registry._holders._entries)
    model = make(inner=inner)
    way(model)
    found = references(model)
    del model
    assert is_all_gone(found)
    assert (len(registry._specs._entries), len(registry._holders._entries)) == num_before


def _set_weights(model, folder):
    model.set_weights(model.get_weights())


def _predict(model, folder):
    model.predict(DATA[0], verbose=0)


def _save_and_load(model, folder):
    model.save(folder / "model.keras")
    keras.models.load_model(folder / "model.keras")
    model.save_weights(str(folder / "model.weights.h5"))
    model.load_weights(str(folder / "model.weights.h5"))


def _publish(model, folder):
    export.DeltaTracker(model, folder / "marks")
    export.save_version(model, folder / "1")
    export.save_delta(model, 1, folder / "delta")


@pytest.mark.parametrize("use", [_set_weights, _predict, _save_and_load, _publish])
def test_so_does_one_that_was_used(use, tmp_path):
    model = make()
    by_single_steps(model)
    use(model, tmp_path)
    found = references(model)
    del model
    assert is_all_gone(found)


def test_an_optimizer_that_is_gone_leaves_the_layer_to_another():
    model = make()
    by_single_steps(model)
    optimizer = weakref.ref(model.optimizer.engine)
    table = tf_variable(model.layers[1].weights[0])
    model.compile(SlipstreamOptimizer("adagrad"), loss="binary_crossentropy")
    fit(model, DATA)
    gc.collect()
    assert optimizer() is None
    assert registry.holders_of(table) == [model.optimizer.engine]


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.parametrize("way", [by_fit, by_a_function], ids=lambda way: way.__name__)
def test_the_memory_of_models_made_one_after_another_does_not_add_up(way):
    # A table and two slots of 32 MB each.
    num_rows, dim = 1 << 18, 32
    table_bytes = 3 * 4 * num_rows * dim

    def use():
        model = make(num_rows, dim)
        way(model)
        assert resident_bytes() > table_bytes
        del model
        collect()

    use()
    before = resident_bytes()
    for _ in range(3):
        use()
    assert resident_bytes() - before < table_bytes
