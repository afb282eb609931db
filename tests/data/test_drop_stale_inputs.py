"""Leaving out examples whose lookups are stale: which, how many, and with which weights."""

import numpy as np
import pytest
import tensorflow as tf

from tests.policy.training import policies
from tf_slipstream import SlipstreamEmbedding, SlipstreamOptimizer
from tf_slipstream._keras import IS_KERAS_3, keras
from tf_slipstream.data import drop_stale_inputs

NUM_ROWS = 12
FAR = 1 << 40  # a step that no test comes to


def plant(optimizer, table, rows):
    """Makes these rows of a table stale, and no others; the places are docs/policy.md's."""
    state = optimizer.tables[table]
    row_states = np.zeros(state.row_states.shape, np.int32)
    entries = np.zeros(state.pool_ints.shape, np.int64)
    for entry, row in enumerate(rows):
        row_states[row] = -1 - entry
        # row, wake_step, live_step, num_updates, held_steps, period, window_updates, is_skipped
        entries[entry] = row, FAR, 1, 100, 0, 8, 0, 0
    state.row_states.assign(row_states)
    state.pool_ints.assign(entries)
    numbers = state.policy_state.numpy()
    numbers[:2] = len(rows)  # num_entries, num_sleeping
    state.policy_state.assign(numbers)


def compiled(model, **stale):
    """Returns a model, compiled, with these stale rows of its tables."""
    model.compile(SlipstreamOptimizer(keras.optimizers.SGD(0.125), policy=policies()), loss="mse")
    if stale:
        model.optimizer.build(model.trainable_variables)
    for table, rows in stale.items():
        plant(model.optimizer, table, rows)
    return model


def embedding(name, **kwargs):
    return SlipstreamEmbedding(NUM_ROWS, 2, name=name, **kwargs)


def two_tables(**stale):
    """Returns a functional model of an example's user and item."""
    ids = {key: keras.Input([1], dtype="int64", name=key) for key in ("user_id", "item_id")}
    rows = [embedding(name)(ids[f"{name}_id"]) for name in ("user", "item")]
    flat = [keras.layers.Flatten()(one) for one in rows]
    return compiled(keras.Model(ids, keras.layers.Dense(1)(keras.layers.Add()(flat))), **stale)


def one_table(stale, ids=None, **kwargs):
    """Returns a functional model of a bag of ids of each example, in a table named "user"."""
    ids = keras.Input([4], dtype="int64") if ids is None else ids
    rows = embedding("user", combiner="mean", **kwargs)(ids)
    return compiled(keras.Model(ids, keras.layers.Dense(1)(rows)), user=stale)


def users_and_items(users, items, batch_size=4, **kwargs):
    """Returns a dataset whose labels are the examples' numbers."""
    features = {
        "user_id": np.reshape(users, [-1, 1]).astype(np.int64),
        "item_id": np.reshape(items, [-1, 1]).astype(np.int64),
    }
    numbers = np.arange(len(users), dtype=np.float32)
    return tf.data.Dataset.from_tensor_slices((features, numbers)).batch(batch_size, **kwargs)


def bags(ids, batch_size=4, weights=None):
    """Returns a dataset of bags of ids, likewise."""
    first = tf.nest.flatten(ids)[0]
    num = first.nrows() if isinstance(first, tf.RaggedTensor) else first.shape[0]
    numbers = tf.range(num, dtype=tf.float32)
    arrays = (ids, numbers) if weights is None else (ids, numbers, weights)
    return tf.data.Dataset.from_tensor_slices(arrays).batch(batch_size)


def labels_of(dataset):
    return [element[1].numpy().tolist() for element in dataset]


# Of the rows 1 and 2 of either table.
USERS = [1, 1, 2, 3, 2, 1, 5, 6, 7, 8]
ITEMS = [1, 3, 2, 1, 3, 1, 1, 4, 9, 2]
BOTH_STALE, ONE_STALE, NONE_STALE = [0, 2, 5], [1, 3, 4, 6, 9], [7, 8]


class TestWhatIsDropped:
    def test_examples_with_a_smaller_share_than_asked_stay_and_fill_the_batches(self):
        model = two_tables(user=[1, 2], item=[1, 2])
        data = users_and_items(USERS, ITEMS)
        assert labels_of(drop_stale_inputs(data, model)) == [[1, 3, 4, 6], [7, 8, 9]]

    def test_a_table_without_policy_is_never_stale(self):
        ids = keras.Input([2], dtype="int64")
        rows = [embedding("user")(ids[:, 0]), embedding("item", policy=None)(ids[:, 1])]
        model = keras.Model(ids, keras.layers.Dense(1)(keras.layers.Add()(rows)))
        data = bags(np.array([[1, 1], [1, 2], [3, 1], [4, 1]]))
        compiled(model, user=[1])
        assert labels_of(drop_stale_inputs(data, model, min_stale=0.5)) == [[2, 3]]
        plant(model.optimizer, "user", [3])
        assert labels_of(drop_stale_inputs(data, model)) == [[0, 1, 2, 3]]

    def test_nothing_is_dropped_while_no_row_is_stale(self):
        model = two_tables()  # its optimizer is not built yet
        data = users_and_items(USERS, ITEMS)
        assert labels_of(drop_stale_inputs(data, model)) == labels_of(data)

    def test_a_share_that_floats_do_not_hold_is_met(self):
        ids = np.full([4, 10], 5)
        ids[1, :6], ids[2, :7], ids[3, :8] = 1, 1, 1
        model = one_table([1], keras.Input([10], dtype="int64"))
        assert labels_of(drop_stale_inputs(bags(ids), model, 0.7)) == [[0, 1]]

    def test_what_wakes_is_not_dropped_in_the_next_pass(self):
        model = two_tables(user=[1, 2], item=[1, 2])
        data = drop_stale_inputs(users_and_items(USERS, ITEMS).cache(), model)
        assert sum(labels_of(data), []) == sorted(ONE_STALE + NONE_STALE)
        plant(model.optimizer, "item", [2])
        assert sum(labels_of(data), []) == [0, 1, 3, 4, 5, 6, 7, 8, 9]
        plant(model.optimizer, "user", [])
        assert labels_of(data) == labels_of(users_and_items(USERS, ITEMS))

    def test_a_row_is_stale_until_the_step_that_wakes_it(self):
        model = two_tables(user=[1, 2], item=[1, 2])
        data = drop_stale_inputs(users_and_items(USERS, ITEMS), model)
        entries = model.optimizer.tables["user"].pool_ints
        values = entries.numpy()
        values[:, 1] = 2  # wake_step; the next step is 1
        entries.assign(values)
        assert sum(labels_of(data), []) == sorted(ONE_STALE + NONE_STALE)
        model.optimizer.iterations.assign(1)
        assert sum(labels_of(data), []) == list(range(10))

    def test_an_id_outside_the_table_is_left_to_the_models_error(self):
        model = one_table([1])
        ids = np.array([[1, 1, 1, 1], [1, 1, 1, NUM_ROWS], [-1, 1, 1, 1], [1, 1, 2, 1]])
        data = drop_stale_inputs(bags(ids), model)
        assert labels_of(data) == [[3]]  # of the others all lookups that are any are stale
        data = drop_stale_inputs(bags(ids), model, keep_fraction=1.0)
        with pytest.raises(tf.errors.InvalidArgumentError, match="(?s)table.*user"):
            model.fit(data, verbose=0)


RAGGED = [[1, 1, 2], [], [3], [1, 3, 1, 1, 1], [2], [1, 2, 0, 0]]


def as_kind(kind, rows):
    """Returns rows of ids as a ragged, sparse or dense tensor; there the padding is 0."""
    ragged = tf.ragged.constant(rows, dtype=tf.int64)
    if kind == "ragged":
        return ragged
    if kind == "sparse":
        return (ragged + 1).to_sparse().with_values(ragged.flat_values)
    return ragged.to_tensor()


class TestKindsOfIds:
    @pytest.mark.parametrize(
        ("kind", "min_stale", "kept"),
        [("ragged", 1.0, [1, 2, 3, 5]), ("ragged", 0.5, [1, 2]), ("sparse", 0.75, [1, 2, 5])],
    )
    def test_ragged_and_sparse_ids_count_as_they_are(self, kind, min_stale, kept):
        ids = keras.Input([None] if kind == "ragged" else [5], dtype="int64", **{kind: True})
        model = one_table([1, 2], ids)
        ((batch, numbers),) = drop_stale_inputs(bags(as_kind(kind, RAGGED), 6), model, min_stale)
        assert numbers.numpy().tolist() == kept
        assert as_lists(batch) == [RAGGED[example] for example in kept]

    def test_padding_of_a_masked_table_is_no_lookup(self):
        ids = as_kind("dense", RAGGED[:5])
        model = one_table([1, 2], keras.Input([5], dtype="int64"), mask_zero=True)
        assert labels_of(drop_stale_inputs(bags(ids, 5), model)) == [[1, 2, 3]]

    def test_ids_of_two_ragged_dimensions(self):
        rows = [[[1], [2, 1]], [[1, 3], []], [[]], [[5], [6]]]
        data = bags(tf.ragged.constant(rows, dtype=tf.int64))
        model = one_table([1, 2])
        dropped = drop_stale_inputs(data, model, min_stale=0.5, ids=lambda ids: {"user": ids})
        ((ids, kept),) = dropped
        assert kept.numpy().tolist() == [2, 3] and ids.to_list() == rows[2:]

    def test_features_of_every_kind_stay_with_their_example(self):
        model = one_table([1])
        num = 23
        ids = np.random.default_rng(0).integers(1, 3, size=[num, 1])
        ids[::4] = 2  # none passes only so that its batch gives one
        features = {
            "ids": ids,
            "name": [f"example {n}" for n in range(num)],
            "ragged": tf.ragged.constant([[n] * (n % 4) for n in range(num)]),
            "sparse": tf.sparse.from_dense(np.arange(num * 2).reshape(num, 2) % 3),
            "wide": np.arange(num * 6).reshape(num, 2, 3),
        }
        batches = list(drop_stale_inputs(bags(features, 4), model, ids={"ids": "user"}))
        kept = np.concatenate([numbers for _, numbers in batches]).astype(int)
        np.testing.assert_array_equal(kept, np.flatnonzero(ids[:, 0] != 1))
        assert [len(numbers) for _, numbers in batches[:-1]] == [4] * (len(batches) - 1)
        for name, values in features.items():
            joined = [row for batch, _ in batches for row in as_lists(batch[name])]
            expected = as_lists(tf.convert_to_tensor(values) if name == "name" else values)
            assert joined == [expected[example] for example in kept], name


def as_lists(batch):
    """Returns the examples of a tensor; those of a sparse one without what is absent."""
    if isinstance(batch, tf.SparseTensor):
        rows = [[] for _ in range(batch.dense_shape[0])]
        for (row, *_), value in zip(batch.indices.numpy(), batch.values.numpy()):
            rows[row].append(int(value))
        return rows
    return batch.to_list() if isinstance(batch, tf.RaggedTensor) else np.array(batch).tolist()


class TestBatches:
    def test_all_are_full_but_the_last(self):
        users = np.random.default_rng(1).integers(1, 4, size=44)
        assert (users.reshape(11, 4) != 1).any(axis=1).all()  # so that no stale one passes
        model = two_tables(user=[1], item=[1])
        labels = labels_of(drop_stale_inputs(users_and_items(users, np.ones(44), 4), model))
        assert [len(batch) for batch in labels[:-1]] == [4] * (len(labels) - 1)
        assert 1 <= len(labels[-1]) <= 4
        assert sum(labels, []) == np.flatnonzero(users != 1).tolist()

    def test_static_sizes_stay_static(self):
        model = two_tables(user=[1, 2], item=[1, 2])
        data = users_and_items(USERS * 3, ITEMS * 3, 8, drop_remainder=True)
        dropped = drop_stale_inputs(data, model)
        assert dropped.element_spec == data.element_spec
        assert [len(labels) for labels in labels_of(dropped)] == [8, 8]

    def test_larger_batches_later_make_larger_ones(self):
        model = two_tables(user=[1], item=[1])
        small, large = (users_and_items([1, 5] * 8, [1, 1] * 8, size) for size in (2, 8))
        data = drop_stale_inputs(small.concatenate(large).concatenate(small), model)
        assert [len(labels) for labels in labels_of(data)] == [2, 2, 2, 2, 8, 8]

    def test_an_empty_dataset_stays_empty(self):
        data = users_and_items(USERS, ITEMS).take(0)
        assert list(drop_stale_inputs(data, two_tables())) == []

    @pytest.mark.parametrize("as_tuple", [False, True])
    def test_features_without_a_label(self, as_tuple):
        model = two_tables(user=[1, 2], item=[1, 2])
        data = users_and_items(USERS, ITEMS)
        data = data.map(lambda features, _: (features,) if as_tuple else features)
        (_, batch) = drop_stale_inputs(data, model)
        batch = batch[0] if as_tuple else batch
        assert batch["user_id"].numpy().tolist() == [[6], [7], [8]]

    def test_a_length_of_its_own_for_every_batch_is_a_clear_error(self):
        def ones(length):
            return tf.ones(tf.stack([2, length]), tf.int64)  # 2 examples, not known statically

        model = one_table([], keras.Input([None], dtype="int64"))
        data = tf.data.Dataset.from_tensors(3).map(ones).repeat(2)
        assert [len(ids) for ids in drop_stale_inputs(data, model)] == [2, 2]
        plant(model.optimizer, "user", [1])
        data = tf.data.Dataset.range(1, 3).map(ones)
        with pytest.raises(tf.errors.InvalidArgumentError, match="(?s)Pad.*them to the same"):
            list(drop_stale_inputs(data, model))


class TestStarvation:
    @pytest.mark.parametrize("max_reads", [3, 100])
    def test_everything_stale_still_gives_a_share_of_each_batch(self, max_reads):
        model = two_tables(user=[1], item=[1])
        data = users_and_items(np.ones(42), np.ones(42), 4)
        kept = labels_of(drop_stale_inputs(data, model, max_reads=max_reads))
        of_each = -(-4 // max_reads)
        number = np.array(sum(kept, [])).astype(int) // 4
        assert np.bincount(number).tolist() == [of_each] * 10 + [1]
        assert len(set(sum(kept, []))) == len(number)

    def test_an_endless_dataset_goes_on_and_says_so(self):
        model = two_tables(user=[1], item=[1])
        data = users_and_items(np.ones(12), np.ones(12), 4).repeat()
        dropped = drop_stale_inputs(data, model)
        assert dropped.cardinality() == tf.data.INFINITE_CARDINALITY
        assert [len(labels) for labels in labels_of(dropped.take(5))] == [4] * 5


class TestFractionAndWeights:
    def test_the_fraction_is_kept_and_its_weights_make_up_for_the_rest(self):
        model = two_tables(user=[1], item=[1])
        users = np.array([1, 1, 1, 1, 1, 1, 1, 2])  # 7 of 8 are stale
        num_batches = 2000
        data = users_and_items(users, np.ones(8), 8).repeat(num_batches)
        # 2.8 of 7: more than one in 8 of the batch, so that none passes for another reason.
        data = drop_stale_inputs(data, model, keep_fraction=0.4, weight_kept=True, seed=1)
        _, labels, weights = next(iter(data.unbatch().batch(8 * num_batches)))
        labels, weights = labels.numpy().astype(int), weights.numpy()
        np.testing.assert_allclose(weights[labels < 7], 1 / 0.4, rtol=1e-6)
        assert (weights[labels == 7] == 1).all()
        counts = np.bincount(labels, minlength=8)
        assert counts[7] == num_batches
        # Of each example 0.4, binomial; 5 standard deviations.
        assert np.abs(counts[:7] - 0.4 * num_batches).max() < 5 * (num_batches * 0.24) ** 0.5
        # 2 or 3 of a batch: less spread than independent draws.
        assert abs(counts[:7].sum() - 2.8 * num_batches) < 5 * (num_batches * 0.16) ** 0.5
        sums = np.bincount(labels, weights=weights, minlength=8) / num_batches
        np.testing.assert_allclose(sums, 1, atol=5 * (0.24 / num_batches) ** 0.5 / 0.4)

    def test_where_more_must_pass_the_weights_are_smaller(self):
        model = two_tables(user=[1], item=[1])
        data = users_and_items(np.ones(8), np.ones(8), 8)
        data = drop_stale_inputs(data, model, keep_fraction=0.01, weight_kept=True, max_reads=4)
        ((_, _, weights),) = data
        np.testing.assert_array_equal(weights, [4, 4])

    def test_weights_of_the_dataset_are_multiplied(self):
        model = one_table([1])
        ids, given = np.array([[1], [2], [1], [1]]), np.array([3.0, 5.0, 7.0, 9.0])
        data = drop_stale_inputs(
            bags(ids, 4, given), model, keep_fraction=0.5, weight_kept=True, ids=by_position
        )
        for _ in range(4):
            ((_, numbers, weights),) = data
            numbers = numbers.numpy().astype(int)
            factor = np.where(numbers == 1, 1, 2)
            np.testing.assert_allclose(weights, given[numbers] * factor, rtol=1e-6)

    def test_weights_of_more_than_one_axis_are_multiplied(self):
        data = bags(np.array([[1], [2]]), 2, np.array([[3.0, 4.0], [5.0, 6.0]]))
        data = drop_stale_inputs(
            data, one_table([1]), keep_fraction=1.0, weight_kept=True, ids=by_position
        )
        ((_, _, weights),) = data
        assert weights.numpy().tolist() == [[3, 4], [5, 6]]

    def test_every_label_gets_the_weights(self):
        data = bags(np.array([[1], [2]])).map(lambda ids, n: (ids, {"click": n, "like": n}, None))
        data = drop_stale_inputs(
            data, one_table([1]), keep_fraction=1.0, weight_kept=True, ids=by_position
        )
        ((_, labels, weights),) = data
        assert labels.keys() == weights.keys() == {"click", "like"}
        assert weights["like"].numpy().tolist() == [1, 1]

    def test_a_seed_repeats_the_choices_and_passes_differ(self):
        model = two_tables(user=[1], item=[1])
        data = users_and_items(np.ones(64), np.ones(64), 16)

        def passes(seed):
            dropped = drop_stale_inputs(data, model, keep_fraction=0.5, seed=seed)
            return [labels_of(dropped) for _ in range(2)]

        first, again, other = passes(7), passes(7), passes(8)
        assert first == again != other
        assert first[0] != first[1]

    def test_the_epochs_gradient_is_unbiased(self):
        """Of a sum of losses over every example, without and with dropping."""
        model = one_table([1, 2])
        rng = np.random.default_rng(0)
        ids = rng.integers(1, 6, size=[64, 1])
        gradients = rng.normal(1.0, size=64)
        data = bags(ids, 16).repeat(300)
        data = drop_stale_inputs(
            data, model, keep_fraction=0.25, weight_kept=True, seed=0, ids=by_position
        )
        _, numbers, weights = next(iter(data.unbatch().batch(64 * 300)))
        kept = weights.numpy() * gradients[numbers.numpy().astype(int)]
        is_stale = ids[:, 0] <= 2
        deviation = np.sqrt(300 * (gradients[is_stale] ** 2).sum() * (1 / 0.25 - 1))
        assert abs(kept.sum() - 300 * gradients.sum()) < 4 * deviation
        dropped = gradients[~is_stale].sum()
        assert abs(dropped - gradients.sum()) * 300 > 8 * deviation  # else it would show nothing


def by_position(ids):
    return {"user": ids}


class TestFindingLookups:
    @pytest.mark.parametrize(
        "ids",
        [
            {"user_id": "user", "item_id": "item"},
            lambda features: {
                "user": [features["user_id"], features["user_id"]],
                "item": (
                    tf.cast(features["item_id"][:, 0], tf.float32),
                    tf.sparse.from_dense(features["item_id"]),
                ),
            },
        ],
    )
    def test_given_ids_need_the_optimizer_only(self, ids):
        optimizer = two_tables(user=[1, 2], item=[1, 2]).optimizer
        data = drop_stale_inputs(users_and_items(USERS, ITEMS), optimizer, ids=ids)
        assert labels_of(data) == [[1, 3, 4, 6], [7, 8, 9]]

    def test_places_of_a_tuple_of_features(self):
        data = users_and_items(USERS, ITEMS).map(lambda x, y: ((x["user_id"], x["item_id"]), y))
        model = two_tables(user=[1, 2], item=[1, 2])
        dropped = drop_stale_inputs(data, model, ids={0: "user", 1: "item"})
        assert labels_of(dropped) == [[1, 3, 4, 6], [7, 8, 9]]

    def test_every_call_of_a_shared_layer_counts(self):
        target, history = (keras.Input([n], dtype="int64") for n in (1, 3))
        layer = embedding("user", combiner="mean")
        rows = keras.layers.Add()([layer(target), layer(history)])
        model = compiled(keras.Model([target, history], keras.layers.Dense(1)(rows)), user=[1])
        layer(keras.Input([7], dtype="int64"))  # part of another model
        ids = (np.array([[1], [1], [2], [1]]), np.array([[1, 1, 1], [1, 1, 2], [1] * 3, [2] * 3]))
        assert labels_of(drop_stale_inputs(bags(ids), model, 0.75)) == [[3]]

    @pytest.mark.parametrize("kind", ["functional", "sequential"])
    def test_lookups_within_an_inner_model_are_found(self, kind):
        if kind == "functional":
            tower_ids = keras.Input([2], dtype="int64")
            tower = keras.Model(tower_ids, embedding("user", combiner="sum")(tower_ids + 1))
        else:
            layers = [keras.Input([2], dtype="int64"), embedding("user", combiner="sum")]
            tower = keras.Sequential(layers)
        ids = keras.Input([2], dtype="int64")
        inner = tower(ids if kind == "functional" else ids + 1)
        model = compiled(keras.Model(ids, keras.layers.Dense(1)(inner)), user=[1])
        data = bags(np.array([[0, 0], [0, 1], [1, 1], [2, 2]]))
        assert labels_of(drop_stale_inputs(data, model)) == [[1, 2, 3]]

    def test_a_sequential_model(self):
        layers = [keras.Input([2], dtype="int64"), embedding("user", combiner="sum")]
        model = compiled(keras.Sequential([*layers, keras.layers.Dense(1)]), user=[1])
        data = bags(np.array([[1, 1], [0, 1], [1, 1], [2, 2]]))
        assert labels_of(drop_stale_inputs(data, model)) == [[1, 3]]

    def test_ids_of_a_preprocessing_layer(self):
        words = keras.Input([1], dtype="string")
        lookup = keras.layers.StringLookup(vocabulary=["a", "b", "c"], num_oov_indices=1)
        rows = embedding("user", combiner="sum")(lookup(words))
        model = compiled(keras.Model(words, keras.layers.Dense(1)(rows)), user=[1, 2])
        data = bags(np.array([["a"], ["b"], ["c"], ["d"]]))
        assert labels_of(drop_stale_inputs(data, model)) == [[2, 3]]

    def test_a_layer_that_does_not_train_is_left_out(self):
        ids = keras.Input([2], dtype="int64")
        rows = [embedding("user")(ids[:, 0]), embedding("item", trainable=False)(ids[:, 1])]
        model = keras.Model(ids, keras.layers.Dense(1)(keras.layers.Add()(rows)))
        compiled(model, user=[1])
        data = bags(np.array([[1, 1], [1, 2], [3, 1], [4, 1]]))
        assert labels_of(drop_stale_inputs(data, model)) == [[2, 3]]

    def test_lookups_that_no_graph_shows_are_an_error(self):
        class Towers(keras.layers.Layer):
            def __init__(self):
                super().__init__()
                self.user = embedding("user")

            def build(self, shape=None):
                self.user.build()
                self.built = True

            def call(self, ids):
                return self.user(ids)

        ids = keras.Input([2], dtype="int64")
        flat = keras.layers.Flatten()(Towers()(ids))
        model = compiled(keras.Model(ids, keras.layers.Dense(1)(flat)), user=[1])
        data = bags(np.array([[1, 1], [1, 2]]))
        with pytest.raises(ValueError, match=r"\['user'\].*Give `ids`"):
            drop_stale_inputs(data, model)
        with pytest.raises(ValueError, match="functional.*Give `ids`"):
            drop_stale_inputs(data, model.optimizer)


def num_stale_lookups(model):
    return sum(one.num_deferred_lookups for one in model.optimizer.skip_stats().values())


class TestFit:
    @pytest.mark.parametrize("cached", [False, True])
    def test_a_model_trains_while_its_rows_fall_asleep(self, cached):
        rng = np.random.default_rng(0)
        users, items = rng.integers(4, size=[2, 64])
        data = users_and_items(users, items, 8)
        model = two_tables()
        policy = policies(drift_metric="l2", threshold=1e30, max_sleep=64, updates_per_sleep=1)
        model.compile(SlipstreamOptimizer(keras.optimizers.SGD(0.001), policy=policy), loss="mse")
        data = data.cache() if cached else data
        data = drop_stale_inputs(
            data.repeat(), model, max_reads=2, keep_fraction=0.25, weight_kept=True
        )
        num_lookups = []
        count = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda *_: num_lookups.append(num_stale_lookups(model))
        )
        history = model.fit(data, steps_per_epoch=8, epochs=6, verbose=0, callbacks=[count])
        assert int(model.optimizer.iterations) == 48 and np.isfinite(history.history["loss"]).all()
        assert num_lookups[-1] > 0

    def test_within_a_loss_scaling_optimizer(self):
        scaling = getattr(keras.mixed_precision, "LossScaleOptimizer", None)
        scaling = scaling or keras.optimizers.LossScaleOptimizer
        model = two_tables()
        inner = SlipstreamOptimizer(keras.optimizers.SGD(0.125), policy=policies())
        model.compile(scaling(inner), loss="mse")
        data = drop_stale_inputs(users_and_items(USERS, ITEMS), model)
        plant(inner, "user", [1, 2])
        plant(inner, "item", [1, 2])
        assert labels_of(data) == [[1, 3, 4, 6], [7, 8, 9]]
        model.fit(data, verbose=0)
        assert int(inner.iterations) == 2


DATA = users_and_items(USERS, ITEMS)


class TestWrongArguments:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"min_stale": 0.0}, r"`min_stale` must be a number in \(0, 1\], got 0.0"),
            ({"min_stale": 1.1}, "`min_stale`"),
            ({"min_stale": "half"}, "`min_stale`"),
            ({"keep_fraction": -0.1}, "`keep_fraction`"),
            ({"keep_fraction": True}, "`keep_fraction`"),
            ({"max_reads": 0}, "`max_reads` must be an integer >= 1"),
            ({"max_reads": 2.0}, "`max_reads`"),
            ({"weight_kept": True}, "`weight_kept` needs a `keep_fraction`"),
            ({"ids": "user"}, "`ids` must be None, a dict or a function"),
            ({"ids": {"user_id": "users"}}, r"\['users'\].*tables are \['item', 'user'\]"),
            ({"ids": {"user": "user"}}, r"'user', .*features are \['user_id', 'item_id'\]"),
            ({"ids": {}}, "a dict from a table's name"),
            ({"ids": lambda features: features["user_id"]}, "must return a dict"),
            ({"dataset": [1, 2]}, "tf.data.Dataset, got list"),
            ({"dataset": DATA.unbatch().map(lambda x, y: (x["user_id"], y))}, "batched"),
            ({"dataset": tf.data.Dataset.zip(DATA, DATA, DATA, DATA)}, "tuple of 4"),
            ({"dataset": DATA.map(lambda x, y: x), "weight_kept": True}, "label"),
            ({"dataset": DATA.map(lambda x, y: (x,)), "weight_kept": True}, "label"),
        ],
    )
    def test_they_are_refused(self, changes, message):
        changes = {"dataset": DATA, "optimizer_or_model": two_tables()} | changes
        if "dataset" in changes and changes.get("weight_kept") and changes["dataset"] is not DATA:
            changes["keep_fraction"] = 0.5
        with pytest.raises(ValueError, match=message):
            drop_stale_inputs(**changes)

    def test_another_optimizer_is_refused(self):
        model = two_tables()
        model.compile("sgd", loss="mse")
        with pytest.raises(ValueError, match="SlipstreamOptimizer, or that optimizer, and got SGD"):
            drop_stale_inputs(DATA, model)

    def test_an_optimizer_that_knows_no_table_yet_is_refused(self):
        with pytest.raises(ValueError, match="found no table.*compiled model"):
            drop_stale_inputs(DATA, two_tables().optimizer)

    def test_ids_of_another_length_are_refused(self):
        data = drop_stale_inputs(
            DATA, two_tables(), ids=lambda x: {"user": tf.reshape(x["user_id"], [-1, 2])}
        )
        with pytest.raises(tf.errors.InvalidArgumentError, match="(?s)first axis.*user"):
            list(data)


@pytest.mark.skipif(not IS_KERAS_3, reason="tf_keras makes no model of these inputs")
def test_nested_features():
    ids = {"ids": (keras.Input([1], dtype="int64"), keras.Input([1], dtype="int64"))}
    rows = [embedding("user", combiner="sum")(one) for one in ids["ids"][:1]]
    rows += [embedding("item", combiner="sum")(one) for one in ids["ids"][1:]]
    model = keras.Model(ids, keras.layers.Dense(1)(keras.layers.Add()(rows)))
    compiled(model, user=[1, 2], item=[1, 2])
    data = DATA.map(lambda x, y: ({"ids": (x["user_id"], x["item_id"])}, y))
    assert labels_of(drop_stale_inputs(data, model)) == [[1, 3, 4, 6], [7, 8, 9]]
