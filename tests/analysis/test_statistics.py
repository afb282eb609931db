"""Checks the figures of a log against plain NumPy and against what is known of made ones."""

import dataclasses

import numpy as np
import pytest

from tests.analysis.test_popularity import Log
from tf_slipstream.analysis import costs
from tf_slipstream.analysis.chunk import Chunk, mixed
from tf_slipstream.analysis.movement import hottest, movement
from tf_slipstream.analysis.row_space import RowSpace
from tf_slipstream.analysis.skew import skew
from tf_slipstream.analysis.survey import Options, Survey
from tf_slipstream.data import SyntheticClickLog


def survey(ids, **options):
    names = tuple(f"f{place}" for place in range(ids.shape[1]))
    return Survey(Log(ids, names), Options(**{"max_bytes": 50_000_000, **options})).run()


@pytest.mark.parametrize("exponent", [0.7, 1.0, 1.3])
def test_the_exponent_of_a_zipf_law_is_found(exponent):
    weights = np.arange(1, 2001) ** -exponent
    counts = np.random.default_rng(0).multinomial(1_000_000, weights / weights.sum())
    assert skew(counts[counts > 0])["zipf_exponent"] == pytest.approx(exponent, abs=0.02)


def test_gini_and_shares_are_those_of_their_definitions():
    counts = np.random.default_rng(0).zipf(1.5, 3000) % 1000 + 1
    found = skew(counts)
    some = np.sort(counts)[::-1]
    differences = np.abs(counts[:, None] - counts[None, :]).mean()
    assert found["gini"] == pytest.approx(differences / 2 / counts.mean())
    assert found["hot_shares"]["0.01"] == pytest.approx(some[:30].sum() / some.sum())
    assert found["hot_shares"]["0.001"] == pytest.approx(some[:3].sum() / some.sum())
    assert skew(np.full(100, 7))["gini"] == pytest.approx(0)


def test_counts_are_those_of_plain_numpy():
    rng = np.random.default_rng(0)
    ids = np.stack([rng.zipf(1.3, 20_000) % 3000, rng.zipf(2.0, 20_000) % 50], axis=1)
    found = survey(ids, batch_size=128)
    assert found["num_examples"] == 20_000 and found["num_steps"] == 157
    batches = [ids[begin : begin + 128] for begin in range(0, 20_000, 128)]
    for place, field in enumerate(found["fields"]):
        column = ids[:, place]
        assert field["distinct_ids"] == len(np.unique(column)) == sum(field["new_ids"])
        assert field["num_row_updates"] == sum(len(np.unique(b[:, place])) for b in batches)
        counts = np.bincount(column)
        assert field["seen_once"] == pytest.approx((counts == 1).sum() / (counts > 0).sum())
        late = column[16_000:]
        unseen = np.isin(late, column[:16_000], invert=True).mean()
        assert field["unseen_share"] == pytest.approx(unseen, abs=0.01)
        share = np.mean([len(np.unique(b)) / 256 for b in np.split(column[:19_968], 78)])
        assert field["distinct_per_batch"]["256"] == pytest.approx(share, rel=0.1)


def test_a_sample_reads_as_much_and_a_shuffle_changes_no_count():
    ids = np.random.default_rng(0).zipf(1.3, (30_000, 1)) % 3000
    whole, part = survey(ids), survey(ids, sample=0.2)
    assert part["num_examples"] == 6000 and whole["num_examples"] == 30_000
    shuffled = survey(ids, shuffle=30_000)
    assert shuffled["fields"][0]["gini"] == whole["fields"][0]["gini"]


def test_keys_have_rows_of_their_own_until_a_field_is_full():
    rng = np.random.default_rng(0)
    space = RowSpace([10, 10], max_buckets=4096)
    rows = {}
    for _ in range(20):
        keys = mixed(rng.integers(0, 700, (200, 2)))
        found = space.rows_of(keys)
        for field in range(2):
            for key, row in zip(keys[:, field].tolist(), found[:, field].tolist()):
                assert rows.setdefault((field, key), row) == row
                assert space.starts[field] <= row < space.starts[field + 1]
    known = [len({key for field, key in rows if field == place}) for place in range(2)]
    assert space.num_keys.tolist() == known and len(set(rows.values())) == sum(known)
    assert not space.is_full.any()
    many = mixed(np.arange(10_000)).reshape(-1, 2)
    assert (space.rows_of(many) == space.rows_of(many)).all() and space.is_full.all()


def periods(kind, num=10, size=20_000, num_ids=3000):
    """Yields counts of ids in periods whose hot set stays, drifts or comes back every four."""
    rng = np.random.default_rng(0)
    weights = np.arange(1, num_ids + 1) ** -1.1
    for period in range(num):
        shift = {"steady": 0, "trending": 8 * period, "seasonal": 200 * (period % 4)}[kind]
        yield np.roll(rng.multinomial(size, weights / weights.sum()), shift)


@pytest.mark.parametrize("kind", ["steady", "trending", "seasonal"])
def test_what_is_hot_stays_or_goes_or_comes_back(kind):
    found = movement([hottest(counts) for counts in periods(kind)])
    assert found["kind"] == kind
    if kind == "seasonal":
        assert found["season"] == 4


@pytest.mark.parametrize(
    "moves, kind",
    [
        ({}, "steady"),
        ({"trend_period": 10_000_000}, "trending"),
        ({"season_period": 50_000, "season_amplitude": 1.0}, "seasonal"),
    ],
)
def test_it_names_what_a_log_that_was_made_so_does(moves, kind):
    log = SyntheticClickLog(cardinalities=[20_000], num_dense=1, **moves)
    ((_, ids), _) = next(log.batches(200_000, 200_000))
    (field,) = survey(ids)["fields"]
    assert field["movement"]["kind"] == kind, field["movement"]


def test_too_few_ids_tell_nothing():
    assert hottest(np.array([5, 3, 0, 1])) is None
    assert movement([None] * 10)["kind"] is None


class Days(Log):
    """The same with a time: a day for every 1,000 examples."""

    def __init__(self, ids):
        super().__init__(ids, ("f0",))
        self.columns = dataclasses.replace(self.columns, time="when")

    def chunks(self, takes):
        for number, chunk in enumerate(super().chunks(takes)):
            times = np.full(len(chunk.keys), 86_400.0 * (20_000 + number))
            yield Chunk(chunk.keys, None, times, chunk.done)


def test_periods_are_days_where_there_is_a_time():
    ids = np.random.default_rng(0).zipf(1.3, (7000, 1)) % 3000
    found = Survey(Days(ids), Options(batch_size=100, max_bytes=50_000_000)).run()
    assert found["periods"] == "days" and found["num_periods"] == 7
    new = [len(np.unique(ids[: 1000 * day])) for day in range(8)]
    assert found["fields"][0]["new_ids"] == np.diff(new).tolist()


def test_bytes_are_those_that_were_measured():
    """docs/reference/parameter_servers.md: 53,248 lookups, 27% distinct, dim 64; KiB a step."""
    num_lookups, num_rows = 2048 * 26, round(0.27 * 2048 * 26)
    measured = {0.0: 7520, 0.47: 4563}
    for deferred, kib in measured.items():
        found = costs.bytes_per_step(num_lookups, num_rows, 64, deferred) / 1024
        assert found == pytest.approx(kib, rel=0.03)
    assert costs.stock_bytes_per_step(num_lookups, num_rows, 64) / 1024 == pytest.approx(
        17472, rel=0.02
    )


@pytest.mark.parametrize(
    "rate, kept", [(None, 1.0), (0.03, 0.5), (0.97, 0.5), (0.15, 0.7), (0.25, 1.0)]
)
def test_few_positives_let_inputs_be_left_out(rate, kept):
    assert costs.choosing_inputs(rate)["kept"] == kept
