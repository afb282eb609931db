"""Checks the forecast's state machine against the policy's oracle, and against training."""

import dataclasses

import numpy as np
import pytest

from tests.policy.reference import PolicyTable
from tf_slipstream import SlipstreamEmbedding, SlipstreamOptimizer, StalenessPolicy
from tf_slipstream._compat import keras
from tf_slipstream.analysis import popularity as popularity_module
from tf_slipstream.analysis.chunk import Chunk, Columns, mixed
from tf_slipstream.analysis.popularity import Popularity
from tf_slipstream.analysis.survey import Options, Survey
from tf_slipstream.data import SyntheticClickLog

# Good ones: benchmarks/quality/rates.py, training.py.
RATES = {
    "adagrad": {"learning_rate": 0.03, "initial_accumulator_value": 1e-6},
    "adam": {"learning_rate": 0.003},
}
# Every row that is judged is at rest.
AT_REST = {"threshold": 1e30, "max_threshold": 1e30, "min_drift": 0.0}
EARLY = {"min_updates": 3, "updates_per_sleep": 2, "window": 2, "refresh_every": 0}
POLICIES = {
    "early": StalenessPolicy(**AT_REST, **EARLY),
    "refresh": StalenessPolicy(**AT_REST, **{**EARLY, "refresh_every": 37}),
    "window": StalenessPolicy(**AT_REST, **{**EARLY, "window": 5, "max_sleep": 16}),
    "max_age": StalenessPolicy(**AT_REST, **EARLY, max_age=3),
    "warm_up": StalenessPolicy(**AT_REST, **EARLY, warm_up=50, first_sleep=4),
    "growth": StalenessPolicy(**AT_REST, **EARLY, sleep_growth=1.5),
    "skip_below": StalenessPolicy(**AT_REST, **EARLY, skip_below=1e30),
    "skip": StalenessPolicy(**AT_REST, **EARLY, on_stale="skip", probe=2),
}


def batches_of(num_steps, size=24, num_rows=60, seed=0, moves=False):
    rng = np.random.default_rng(seed)
    for step in range(num_steps):
        begin = 8 * (step // 20) if moves else 0
        yield (begin + np.minimum(rng.zipf(1.3, size), num_rows // 20)) % num_rows


def forecast(policy, batches, num_rows):
    """Returns a `Popularity` that has seen the batches."""
    found = Popularity(policy, 1)
    counts = np.zeros(num_rows, np.int64)
    for step, ids in enumerate(batches, 1):
        rows, first, num_lookups = np.unique(ids, return_index=True, return_counts=True)
        counts[rows] += 1
        fields = np.zeros(len(rows), np.int64)
        found.step(step, rows, fields, counts[rows], num_lookups, first, np.array([num_rows]))
    return found


@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("name", POLICIES)
def test_it_defers_what_the_oracle_defers(name, moves, monkeypatch):
    policy, num_rows, capacity = POLICIES[name], 60, 60
    if moves:
        num_rows = 800
        # A small pool, whose rows are not looked up any more after a while.
        capacity = 12
        monkeypatch.setattr(popularity_module, "_MIN_CAPACITY", capacity)
        if policy.on_stale == "skip":
            pytest.skip("a row that lost its entry begins with its updates, not its batches")
    batches = list(batches_of(1500 if moves else 300, num_rows=num_rows, moves=moves))
    rng = np.random.default_rng(1)
    table = PolicyTable(rng.standard_normal([num_rows, 2]), "sgd", policy, least_capacity=capacity)
    for ids in batches:
        table.step(ids, rng.standard_normal([len(ids), 2]), 0.01)
    found = forecast(policy, batches, num_rows)
    for kind in ("deferred", "skipped"):
        for what in ("lookups", "row_updates"):
            expected = table.counters[f"num_{kind}_{what}"]
            assert getattr(found, f"num_{kind}_{what}")[0] == expected, (kind, what)
    assert found.num_popular[0] == len(table.pool)
    assert found.num_sleeping()[0] == table.num_sleeping
    stale = table.counters["num_deferred_lookups"] + table.counters["num_skipped_lookups"]
    assert stale > 0
    if moves and name != "skip_below":
        assert table.num_evicted > 0


class Log:
    """A log of ids in memory, as a reader gives them."""

    def __init__(self, ids, names):
        self.columns = Columns(names, None, None)
        self._ids = ids

    def chunks(self, takes=lambda: True):
        for begin in range(0, len(self._ids), 1000):
            if not takes():
                continue
            keys = mixed(self._ids[begin : begin + 1000])
            yield Chunk(keys, None, None, min(1.0, (begin + 1000) / len(self._ids)))


SIZES = (100_000, 50_000, 20_000, 10_000, 5_000, 1_000, 300, 100, 30, 10)
CARDINALITIES = {f"field{number}": size for number, size in enumerate(SIZES)}
DIM = 16


def click_log(num_examples):
    """Returns ids and labels of a log whose clicks a planted model decides, with noise."""
    log = SyntheticClickLog(cardinalities=[*CARDINALITIES.values()], num_dense=1)
    ((_, ids), labels) = next(log.batches(num_examples, num_examples))
    return ids.astype(np.int64), labels


def trained_stats(ids, labels, policy, rule, batch_size=64):
    """Returns the `SkipStats` of a DLRM that was trained on a log in its order."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input([len(CARDINALITIES)], dtype="int64")
    rows = [
        SlipstreamEmbedding(size, DIM, name=name)(inputs[:, place])
        for place, (name, size) in enumerate(CARDINALITIES.items())
    ]
    stacked = keras.layers.Reshape([len(rows), DIM])(keras.layers.Concatenate()(rows))
    hidden = keras.layers.Flatten()(keras.layers.Dot(axes=2)([stacked, stacked]))
    for units in (64, 32):
        hidden = keras.layers.Dense(units, activation="relu")(hidden)
    model = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(hidden))
    optimizer = SlipstreamOptimizer(rule, policy=policy)
    model.compile(optimizer, loss="binary_crossentropy")
    model.fit(ids, labels, batch_size=batch_size, shuffle=False, verbose=0)
    return optimizer.skip_stats()


def forecast_of(ids, policy, optimizer, batch_size=64):
    """Returns what is forecast of each table, and of all."""
    options = Options(batch_size, {"it": policy}, optimizer, max_bytes=10_000_000)
    found = Survey(Log(ids, (*CARDINALITIES,)), options).run()
    tables = {field["name"]: field["policies"]["it"] for field in found["fields"]}
    return tables, found["policies"]["it"]


def test_it_is_exact_for_training_with_every_row_at_rest():
    ids, labels = click_log(64 * 400)
    policy = StalenessPolicy(**AT_REST, min_updates=20, updates_per_sleep=10)
    stats = trained_stats(ids, labels, policy, keras.optimizers.Adagrad(0.05))
    tables, _ = forecast_of(ids, policy, "adagrad")
    for name, found in tables.items():
        one = stats[name]
        assert one.num_deferred_lookups > 0
        assert found["most_lookups_deferred"] == one.num_deferred_lookups / one.num_lookups
        share = one.num_deferred_row_updates / one.num_row_updates
        assert found["most_row_updates_deferred"] == share


@pytest.mark.parametrize("name", ["conservative", "aggressive", "auto"])
@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
def test_it_is_within_a_tenth_of_what_training_does(optimizer, name):
    ids, labels = click_log(64 * 1000)
    policy = getattr(StalenessPolicy, name)()
    rule = {"adagrad": keras.optimizers.Adagrad, "adam": keras.optimizers.Adam}[optimizer]
    rule = rule(**RATES[optimizer])
    stats = trained_stats(ids, labels, policy, rule).values()
    _, found = forecast_of(ids, policy, optimizer)
    for what in ("lookups", "row_updates"):
        deferred = sum(getattr(one, f"num_deferred_{what}") for one in stats)
        share = deferred / sum(getattr(one, f"num_{what}") for one in stats)
        print(what, found[f"{what}_deferred"], share)
        assert share > 0.05
        assert share <= found[f"most_{what}_deferred"]
        assert found[f"{what}_deferred"] == pytest.approx(share, rel=0.1)


def test_a_policy_that_never_finds_a_row_at_rest_defers_nothing():
    """The bound's other side: a model may move as it likes."""
    ids, labels = click_log(64 * 100)
    policy = dataclasses.replace(POLICIES["early"], threshold=0.0)
    stats = trained_stats(ids, labels, policy, keras.optimizers.Adagrad(0.05))
    assert all(one.num_deferred_lookups == 0 for one in stats.values())
    tables, _ = forecast_of(ids, policy, "adagrad")
    assert tables["field5"]["lookups_deferred"] == 0 < tables["field5"]["most_lookups_deferred"]
