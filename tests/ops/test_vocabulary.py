"""Rows of raw ids, in training and out of it, against dictionaries."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tests.vocabulary_oracle import DictionaryVocabulary
from tf_slipstream.ops import _library
from tf_slipstream.ops.admit_ids import admit_ids
from tf_slipstream.ops.encoded_ids import decoded_ids, encoded_ids
from tf_slipstream.ops.find_ids import find_ids
from tf_slipstream.state import schema
from tf_slipstream.state.vocabulary import (
    MAX_COUNT,
    OF_STEP,
    STEP_BITS,
    VocabularySettings,
    filled_index,
    grown,
    hash_ids,
    scaled,
    with_ids,
)

STRANGE = [0, -2, 2**63 - 1, -(2**63), 1 << 32, 5]
NUM_RESET = schema.VOCABULARY_COUNTERS.index("num_reset")


def settings_of(admit_after=1, forget_after=0, num_oov=1, padding=(-1,), **options):
    options = {"num_words": 1, "is_string": False} | options
    return VocabularySettings(
        padding=padding,
        num_oov=num_oov,
        admit_after=admit_after,
        forget_after=forget_after,
        **options,
    )


class Map:
    """A vocabulary's variables, without a layer."""

    def __init__(self, capacity, settings, arrays=None):
        self.settings = settings
        arrays = settings.zeros(capacity) if arrays is None else arrays
        self.variables = {name: tf.Variable(array) for name, array in arrays.items()}

    def train(self, ids):
        rows, taken_back, _ = admit_ids("ids", self.variables, self.settings, self.words(ids))
        counters = self.variables["counters"].numpy()
        counters[NUM_RESET] += len(taken_back)
        self.variables["counters"].assign(counters)
        return rows.numpy(), taken_back.numpy()

    def words(self, ids):
        dtype = tf.string if self.settings.is_string else tf.int64
        return encoded_ids(self.settings, tf.constant(ids, dtype, shape=[len(ids)]))

    def look_up(self, ids):
        index, row_ids = self.variables["index"], self.variables["row_ids"]
        return find_ids(index, row_ids, self.settings, self.words(ids)).numpy()

    def arrays(self):
        return {name: variable.numpy() for name, variable in self.variables.items()}


def assert_same(one, other):
    for name, array in one.arrays().items():
        np.testing.assert_array_equal(array, other.variables[name].numpy(), name)


def skewed(random, num_ids, num, begin=0):
    return begin + (num_ids * random.random(num) ** 3).astype(np.int64)


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=25)
def test_rows_are_those_of_a_dictionary_and_native_and_fallback_are_alike(data):
    capacity = data.draw(st.integers(3, 40), "capacity")
    admit_after = data.draw(st.sampled_from([1, 1, 2, 3]), "admit_after")
    forget_after = data.draw(st.sampled_from([None, 1, 3, 9, 40]), "forget_after")
    random = np.random.default_rng(data.draw(st.integers(0, 99), "seed"))
    settings = settings_of(admit_after, forget_after or 0)
    native, fallback = Map(capacity, settings), Map(capacity, settings)
    oracle = DictionaryVocabulary(capacity, admit_after, forget_after)
    for step in range(15):
        ids = np.concatenate([skewed(random, 30, random.integers(0, 30), step // 3), STRANGE])
        ids = random.choice([*ids, -1], random.integers(0, 30))
        expected = oracle.train(ids.tolist())
        rows, taken_back = native.train(ids)
        assert rows.tolist() == expected
        assert taken_back.tolist() == oracle.taken_back
        with _library.fallback():
            others = fallback.train(ids)
        assert [one.tolist() for one in others] == [rows.tolist(), taken_back.tolist()]
        asked = np.concatenate([np.arange(-3, 45), STRANGE])
        assert native.look_up(asked).tolist() == oracle.look_up(asked.tolist())
    assert_same(native, fallback)


def test_the_coldest_row_is_that_of_the_greatest_age_for_each_step(native_or_fallback):
    vocabulary = Map(5, settings_of())
    for batch in ([1], [1], [1], [2, 2, 2, 3], []):
        vocabulary.train(batch)
    # 3 steps ago and looked up by 3, and 2 steps ago by one.
    assert vocabulary.train([4])[1].tolist() == [3]
    assert vocabulary.look_up([1, 2, 3, 4]).tolist() == [2, 1, 4, 3]


@pytest.mark.parametrize("forget_after", [None, 9])
def test_counts_end_and_the_numbers_of_steps_begin_anew(forget_after):
    settings, step = settings_of(forget_after=forget_after or 0), (1 << STEP_BITS) - 50
    random, oracle = np.random.default_rng(0), DictionaryVocabulary(12, 1, forget_after)
    native, fallback = Map(12, settings), Map(12, settings)
    oracle.step = step
    for vocabulary in (native, fallback):
        counters = vocabulary.variables["counters"].numpy()
        counters[schema.VOCABULARY_COUNTERS.index("step")] = step
        vocabulary.variables["counters"].assign(counters)
    for number in range(100):
        ids = [*skewed(random, 30, 6, number), *[-7] * (number < 40)]
        expected = oracle.train(ids)
        assert native.train(ids)[0].tolist() == expected
        with _library.fallback():
            assert fallback.train(ids)[0].tolist() == expected
    assert_same(native, fallback)
    assert -7 not in oracle.row_of


def test_rows_without_a_count_have_one_of_1(native_or_fallback):
    """As of an earlier build, which had no counts."""
    vocabulary = Map(5, settings_of())
    for batch in ([1], [1], [2], [3]):
        vocabulary.train(batch)
    seen = vocabulary.variables["last_seen"].numpy()
    vocabulary.variables["last_seen"].assign(seen & ~(MAX_COUNT << STEP_BITS))
    assert vocabulary.train([4])[1].tolist() == [2]
    assert vocabulary.train([2, 5])[0].tolist() == [3, 4]


def colliding_ids(num, num_buckets):
    """Returns ids whose place is the last bucket, so that they run over into the first ones."""
    ids = np.arange(200 * num * num_buckets)
    ids = ids[scaled(hash_ids(ids[:, None]), num_buckets) == num_buckets - 1]
    return ids[:num]


@pytest.mark.parametrize("seed", range(2))
def test_ids_that_collide_are_found_whatever_was_taken_back(seed, native_or_fallback):
    capacity = 42
    vocabulary, random = Map(capacity, settings_of()), np.random.default_rng(seed)
    ids = colliding_ids(80, int(vocabulary.variables["index"].shape[0]))
    oracle = DictionaryVocabulary(capacity)
    for _ in range(8):
        some = random.choice(ids, 12)
        assert vocabulary.train(some)[0].tolist() == oracle.train(some.tolist())
        assert vocabulary.look_up(ids).tolist() == oracle.look_up(ids.tolist())


def test_equal_tags_do_not_make_ids_equal():
    """Of ids that share a bucket and 32 bits of their hash, which are hard to find."""
    settings = settings_of()
    vocabulary = Map(20, settings)
    vocabulary.train([7])
    row = vocabulary.look_up([7])[0]
    index = vocabulary.variables["index"].numpy()
    home = int(scaled(hash_ids(np.array([[9]])), len(index))[0])
    tag = hash_ids(np.array([[9]]))[0] << np.uint64(32)
    index[home, :2] = np.uint64(tag | np.uint64(row + 1)).view(np.int64)
    vocabulary.variables["index"].assign(index)
    assert vocabulary.look_up([9])[0] == 1
    assert vocabulary.train([9])[0] == [3]
    assert vocabulary.look_up([9])[0] == 3


def id_of_hash(value):
    """Returns the id that has a hash: each step of it can be undone."""
    bits = (1 << 64) - 1
    value ^= value >> 29 ^ value >> 58
    value = value * pow(0xC4CEB9FE1A85EC53, -1, 1 << 64) & bits
    value ^= value >> 32
    value = value * pow(0xFF51AFD7ED558CCD, -1, 1 << 64) & bits ^ 0x9E3779B97F4A7C15
    return value - (1 << 64) if value >> 63 else value


def test_the_tag_of_a_free_slot_is_that_of_an_id_too(native_or_fallback):
    ids = [id_of_hash(upper << 32) for upper in (0, 3, 1 << 31, 5)]
    assert not (hash_ids(np.array(ids)[:, None]) << np.uint64(32)).any()
    vocabulary, oracle = Map(20, settings_of()), DictionaryVocabulary(20)
    for batch in (ids[:2], ids[1:], ids[::-1]):
        assert vocabulary.train(batch)[0].tolist() == oracle.train(batch)
        assert vocabulary.look_up(ids).tolist() == oracle.look_up(ids)


def test_ids_without_a_row_share_those_for_them_by_their_hash(native_or_fallback):
    vocabulary = Map(200, settings_of(admit_after=4, num_oov=5, padding=()))
    ids = np.arange(1000)
    rows, _ = vocabulary.train(ids)
    np.testing.assert_array_equal(np.unique(rows), range(5))
    np.testing.assert_array_equal(vocabulary.look_up(ids), rows)
    assert np.bincount(rows).min() > 100


STRINGS = ["", "a", "a\0", "b" * 15, "b" * 16, "b" * 20, "ä", "a" * 8, "a" * 7]


def test_strings_are_kept_in_full_and_those_that_are_too_long_get_no_row(native_or_fallback):
    settings = settings_of(num_words=2, is_string=True, padding=(1, 0))
    vocabulary = Map(20, settings)
    rows, _ = vocabulary.train(STRINGS)
    assert rows.tolist() == [0, 2, 3, 4, 1, 1, 5, 6, 7]
    np.testing.assert_array_equal(vocabulary.look_up(STRINGS), rows)
    counters = dict(zip(schema.VOCABULARY_COUNTERS, vocabulary.variables["counters"].numpy()))
    assert (counters["num_too_long_lookups"], counters["num_padding_lookups"]) == (2, 1)
    assert counters["num_admitted"] == counters["num_known_lookups"] == 6
    used = vocabulary.variables["row_ids"].numpy()[2:8]
    expected = [one.encode() for one in STRINGS if 0 < len(one.encode()) < 16]
    assert decoded_ids(settings, used) == expected


def test_a_sketch_counts_few_ids_for_another_and_forgets_what_was_long_ago():
    settings = settings_of(admit_after=2)
    vocabulary, random = Map(2000, settings), np.random.default_rng(0)
    limit = 2 * int(vocabulary.variables["sketch"].shape[0])
    num_early, counter = 0, schema.VOCABULARY_COUNTERS.index("num_sketched")
    fallback = Map(2000, settings)
    for _ in range(6):
        ids = random.integers(1 << 62, size=limit // 4)
        rows, _ = vocabulary.train(ids)
        num_early += (rows > 1).sum()
        with _library.fallback():
            fallback.train(ids)
        assert vocabulary.variables["counters"].numpy()[counter] <= limit
    assert 0 < num_early < 0.03 * 6 * limit / 4
    assert_same(vocabulary, fallback)


def test_the_result_does_not_depend_on_the_number_of_threads():
    """Each op is cut into chunks that run on whatever threads there are."""
    settings = settings_of(admit_after=2, forget_after=3)
    random = np.random.default_rng(0)
    batches = [skewed(random, 20_000, 30_000, 500 * step) for step in range(8)]
    maps = [Map(5000, settings) for _ in range(2)]
    for batch in batches:
        rows, _ = maps[0].train(batch)
        with tf.device("CPU:0"):
            others, _ = maps[1].train(batch)
        np.testing.assert_array_equal(rows, others)
    assert_same(*maps)


@pytest.mark.parametrize("is_string", [False, True])
def test_a_map_is_made_of_ids_and_grows(is_string):
    num_words = 3 if is_string else 1
    settings = settings_of(num_words=num_words, is_string=is_string, padding=())
    ids = [f"id {i}" for i in range(50)] if is_string else np.arange(50) * 7 - 3
    rows = np.random.default_rng(0).permutation(np.arange(1, 60))[:50]
    words = Map(60, settings).words(ids).numpy()
    vocabulary = Map(60, settings, with_ids(settings, 60, words, rows, step=3))
    np.testing.assert_array_equal(vocabulary.look_up(ids), rows)
    more = Map(200, settings, grown(settings, vocabulary.arrays(), 200))
    np.testing.assert_array_equal(more.look_up(ids), rows)
    new = [f"new {i}" for i in range(120)] if is_string else np.arange(1000, 1120)
    got = more.train(new)[0]
    free = sorted(set(range(1, 200)) - set(rows.tolist()))
    assert sorted(got.tolist()) == free[:120]
    np.testing.assert_array_equal(more.look_up(ids), rows)


def test_a_full_index_has_every_id_where_it_is_looked_for():
    words = np.arange(16 * 40)[:, None]
    index = filled_index(words, np.arange(len(words)), 90)
    variables = tf.Variable(index), tf.Variable(words)
    rows = find_ids(*variables, settings_of(padding=()), tf.constant(words))
    np.testing.assert_array_equal(rows, np.arange(len(words)))


def test_changed_rows_of_the_map_are_marked(native_or_fallback):
    vocabulary, random = Map(100, settings_of(forget_after=2)), np.random.default_rng(0)
    for step in range(20):
        before = vocabulary.arrays()
        for name in ("changed_index", "changed_ids"):
            vocabulary.variables[name].assign(np.zeros_like(before[name]))
        vocabulary.train(skewed(random, 90, 20, 10 * step))
        for name, bits in (("index", "changed_index"), ("row_ids", "changed_ids")):
            is_other = (vocabulary.variables[name].numpy() != before[name]).any(axis=1)
            words = vocabulary.variables[bits].numpy().view(np.uint8)
            marked = np.unpackbits(words, bitorder="little")[: len(is_other)].astype(bool)
            assert not (is_other & ~marked).any()
            assert marked.sum() <= 60


@pytest.mark.parametrize("column, value", [("num_free", 50), ("num_given", -1), ("hand", 200)])
def test_state_that_was_not_restored_whole_is_refused(column, value):
    vocabulary = Map(20, settings_of())
    vocabulary.train([1, 2])
    counters = vocabulary.variables["counters"].numpy()
    counters[schema.VOCABULARY_COUNTERS.index(column)] = value
    vocabulary.variables["counters"].assign(counters)
    with pytest.raises(tf.errors.InvalidArgumentError, match="'ids': it was not restored whole"):
        vocabulary.train([3])


def test_rows_that_nobody_reset_are_an_error(native_or_fallback):
    vocabulary = Map(4, settings_of())
    arguments = "ids", vocabulary.variables, vocabulary.settings
    for one in ([1, 2], [3]):
        admit_ids(*arguments, vocabulary.words(one))
    before = vocabulary.arrays()
    with pytest.raises(tf.errors.InvalidArgumentError, match="'ids' took 1 rows back, and 0 of"):
        admit_ids(*arguments, vocabulary.words([4]))
    for name in OF_STEP:
        np.testing.assert_array_equal(vocabulary.variables[name].numpy(), before[name])
