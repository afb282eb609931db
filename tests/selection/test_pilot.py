"""The pilot, against one in NumPy that learns an input at a time."""

import numpy as np
import pytest
import tensorflow as tf

import tf_slipstream as slipstream
from tests.selection import reference
from tf_slipstream._compat import keras

DIMS = {"user": 7, "tags": 5}
BAGS = [([3], [0, 4]), ([6], [2]), ([3], [4, 4, 1]), ([0], [2, 0])]
SINGLE = [([3], [0]), ([6], [2]), ([3], [4]), ([0], [2]), ([3], [0])]
LABELS = np.float32([1, 0, 1, 0, 1])


def ragged(bags):
    return tf.ragged.constant(bags, tf.int64)


def sparse(bags):
    return ragged(bags).to_sparse()


def forms_of(bags):
    """Yields the same ids in every form that a pilot takes, and the pilot's `input_dims`."""
    users, tags = [user[0] for user, _ in bags], [tags for _, tags in bags]
    sizes = list(DIMS.values())
    if all(len(bag) == 1 for bag in tags):
        flat = [bag[0] for bag in tags]
        yield sizes, tf.constant(list(zip(users, flat)))
        yield DIMS, tf.constant(list(zip(users, flat)), tf.int64)
        yield sizes, (np.array(users), np.array(flat))
        yield DIMS, {"tags": tf.constant(flat), "user": tf.constant(users), "more": "anything"}
        yield DIMS, {"tags": tf.constant(tags), "user": tf.constant(users)[:, tf.newaxis]}
    for form in (ragged, sparse):
        yield DIMS, {"user": tf.constant(users), "tags": form(tags)}
        yield sizes, [form([[user] for user in users]), form(tags)]


CASES = [(bags, *form) for bags in (SINGLE, BAGS) for form in forms_of(bags)]


@pytest.mark.parametrize("place", range(len(CASES)))
@pytest.mark.parametrize("is_graph", [False, True])
def test_it_learns_as_the_reference_does(place, is_graph, native_or_fallback):
    bags, dims, ids = CASES[place]
    labels, weights = LABELS[: len(bags)], np.float32([1, 2, 0.5, 0, 3])[: len(bags)]
    pilot, expected = slipstream.Pilot(dims), reference.Pilot(DIMS)
    optimizer = pilot.make_optimizer()

    def learn(ids):
        prediction = pilot.predict_batch(ids)
        pilot.learn(prediction, labels, optimizer, weights)
        return prediction.log_odds

    learn = tf.function(learn) if is_graph else learn
    ids = tf.nest.map_structure(lambda t: t, ids)
    for _ in range(3):
        before = [expected.log_odds(one) for one in bags]
        np.testing.assert_allclose(learn(ids), before, rtol=1e-5, atol=1e-6)
        expected.learn(bags, labels, weights)
    np.testing.assert_allclose(
        pilot.call(ids), [expected.log_odds(one) for one in bags], rtol=1e-5, atol=1e-6
    )


def test_dense_features_have_weights_too():
    dense = np.random.default_rng(0).normal(size=[5, 2]).astype("float32")
    ids = np.array([[user[0], tags[0]] for user, tags in SINGLE])
    pilot = slipstream.Pilot(
        DIMS, ids=lambda inputs: inputs[1], dense=lambda inputs: inputs[0], num_dense=2
    )
    expected, optimizer = reference.Pilot(DIMS, num_dense=2), pilot.make_optimizer()
    for _ in range(3):
        pilot.learn(pilot.predict_batch((dense, ids)), LABELS, optimizer)
        expected.learn(SINGLE, LABELS, dense=dense)
    expected = [expected.log_odds(*one) for one in zip(SINGLE, dense)]
    np.testing.assert_allclose(pilot.call((dense, ids)), expected, rtol=1e-5)


def test_it_learns_the_click_rates_of_a_log():
    rng = np.random.default_rng(0)
    rates = rng.uniform(0.02, 0.9, size=20)
    pilot = slipstream.Pilot([20])
    optimizer = pilot.make_optimizer()
    for _ in range(200):
        ids = rng.integers(20, size=[256, 1])
        labels = (rng.random(256) < rates[ids[:, 0]]).astype("float32")
        pilot.learn(pilot.predict_batch(ids), labels, optimizer)
    # Adagrad's steps shrink: rates far from the mean are on their way.
    found = tf.sigmoid(pilot(np.arange(20)[:, np.newaxis])).numpy()
    np.testing.assert_allclose(found, rates, atol=0.12)
    assert np.corrcoef(found, rates)[0, 1] > 0.99


@pytest.mark.parametrize("ids", [[[0, 5]], [[7, 0]], [[-1, 0]]])
def test_an_id_outside_its_field_is_an_error_though_the_table_has_such_a_row(ids):
    field = "tags" if ids == [[0, 5]] else "user"
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"(?s)not in.*{field}"):
        slipstream.Pilot(DIMS)(tf.constant(ids))


@pytest.mark.parametrize("ids", [{"user": [1]}, [[1]], [[1], [2], [3]], [[1, 2, 3]]])
def test_ids_of_other_fields_are_refused(ids):
    if isinstance(ids, list) and len(ids) == 1:
        ids = tf.constant(ids)
    with pytest.raises(ValueError, match="user, tags"):
        slipstream.Pilot(DIMS).predict_batch(ids)


@pytest.mark.parametrize("dims", [{}, [], 5, None, [0], [-1], [2.5], {"a": True}, "ab"])
def test_other_dimensions_are_refused(dims):
    with pytest.raises(ValueError, match="input_dims"):
        slipstream.Pilot(dims)


def test_dense_features_and_their_number_go_together():
    for arguments in ({"dense": lambda x: x}, {"num_dense": 3}):
        with pytest.raises(ValueError, match="go together"):
            slipstream.Pilot(DIMS, **arguments)


def test_it_has_a_config_and_nothing_that_a_model_trains():
    pilot = slipstream.Pilot(DIMS, name="p", learning_rate=0.2)
    copy = slipstream.Pilot.from_config(pilot.get_config())
    assert copy.input_dims == DIMS and copy.name == "p" and copy.learning_rate == 0.2
    assert pilot.trainable_variables == [] and len(pilot.weights) == 2


def test_popularity_grows_with_the_batches_that_had_the_row():
    pilot = slipstream.Pilot([4])
    optimizer = pilot.make_optimizer()
    for step in range(400):
        ids = [[0]] * 5 + [[1]] * (step % 4 == 0) + [[2]] * (step == 0)
        pilot.learn(pilot.predict_batch(tf.constant(ids)), tf.zeros(len(ids)), optimizer)
    found = pilot.predict_batch(tf.constant([[0], [1], [2], [3]])).popularities
    expected = [pilot.popularity_of(num) for num in (400, 100, 1, 0)]
    np.testing.assert_allclose(found, expected, rtol=0.15, atol=0.11)


def test_a_functional_model_may_have_it_as_a_layer():
    inputs = keras.Input([2], dtype="int64")
    model = keras.Model(inputs, slipstream.Pilot(DIMS)(inputs))
    np.testing.assert_array_equal(model(np.array([[1, 2]])), [0.0])
