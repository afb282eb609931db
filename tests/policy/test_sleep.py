"""When a row sleeps, when it wakes, and that nothing of it changes in between."""

import numpy as np
import pytest

from tests.models import values_of
from tests.policy.training import RULES, Product, Stream, policies
from tests.reference import summed_rows
from tf_slipstream import SlipstreamOptimizer, _compat

keras = _compat.keras

# At rest whenever it is judged. Sleeps double with each judgement, that is every 2 updates.
ALWAYS_AT_REST = {
    "drift_metric": "l2",
    "threshold": 1e30,
    "min_updates": 1,
    "first_sleep": 2,
    "max_sleep": 8,
    "updates_per_sleep": 1,
}


def always_at_rest(**changes):
    return policies(**ALWAYS_AT_REST | changes)


def steps_that_change_row(product, num_steps, row=0, learning_rates=None, lookups=None):
    """Returns in which of some steps, with gradients 1 in all or in these, a row changes."""
    changing = []
    lookups = range(1, num_steps + 1) if lookups is None else lookups
    for step in range(1, num_steps + 1):
        before = product.arrays()["table"][row]
        ids = [row] if step in lookups else []
        rate = (learning_rates or {}).get(step)
        product.step(ids, np.ones([len(ids), product.layer.output_dim]), rate)
        if (product.arrays()["table"][row] != before).any():
            changing.append(step)
    return changing


def product_of(policy, name="sgd", num_rows=1):
    return Product(np.zeros([num_rows, 2]), name, policy)


class TestSchedule:
    """Steps worked out by hand from the page; `test_reference.py` has the first two too."""

    def test_deferring_doubles_the_period_up_to_the_limit(self):
        product = product_of(always_at_rest())
        steps = steps_that_change_row(product, 48)
        # A sleep of a new length ends where its length divides the step, as the row has entry 0.
        assert steps == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 48]

    def test_rows_of_one_batch_sleep_in_other_phases(self):
        product = product_of(always_at_rest(), num_rows=2)
        steps = []
        for step in range(1, 25):
            before = product.arrays()["table"][1]
            product.step([0, 1], np.ones([2, 2]))
            if (product.arrays()["table"][1] != before).any():
                steps.append(step)
        assert steps == [1, 2, 3, 5, 7, 11, 15, 23]

    def test_skipping_doubles_the_sleep_up_to_the_limit(self):
        product = product_of(always_at_rest(on_stale="skip"))
        # The third sleep is of 7 batches, not 8: the row has had 7 updates.
        steps = steps_that_change_row(product, 33)
        assert steps == [1, 2, 3, 6, 7, 12, 13, 21, 22, 31, 32]

    def test_a_sleep_counts_the_rows_batches_in_steps(self):
        """In every third step: once the lengths stay, they are three times as long."""
        product = product_of(always_at_rest())
        steps = steps_that_change_row(product, 144, lookups=range(3, 145, 3))
        assert steps == [3, 6, 9, 12, 18, 21, 33, 45, 69, 93, 117, 141]

    def test_a_sleep_ends_with_its_batches_where_they_come_sooner(self):
        product = product_of(always_at_rest())
        lookups = [*range(3, 118, 3), *range(118, 142)]
        # Updated in 117, it may sleep until 139, but holds its 7 batches in 124.
        assert steps_that_change_row(product, 141, lookups=lookups)[-5:] == [93, 117, 125, 133, 141]

    def test_no_sleep_is_longer_than_max_age_steps(self):
        product = product_of(always_at_rest(max_age=2))
        steps = steps_that_change_row(product, 20)
        assert steps == [1, 2, 3, 4, 6, 9, 12, 15, 18]

    @pytest.mark.parametrize("updates_per_sleep, steps", [(3, [5, 6, 7, 8, 10, 12, 15])])
    def test_the_limit_grows_with_the_rows_updates(self, updates_per_sleep, steps):
        product = product_of(always_at_rest(updates_per_sleep=updates_per_sleep))
        # Judged at 3 and 5: 3 // 3 = 1 and 5 // 3 = 1 allow no sleep; at 7: 2, at 10: 3.
        assert steps_that_change_row(product, 17)[4:] == steps

    def test_the_limit_grows_with_a_power_of_the_rows_updates(self):
        changes = {"updates_per_sleep": 4, "max_sleep": 16, "sleep_growth": 2.0}
        product = product_of(always_at_rest(**changes))
        # Judged at 3 and 5: (5 / 4)^2 allows 1; at 7: 3.06, and 2 is twice 1; at 10: 6.25, and 4.
        steps = steps_that_change_row(product, 30)
        periods = np.diff(steps)
        assert [*periods[:6]] == [1] * 6 and periods.max() > 4
        linear = product_of(always_at_rest(**changes | {"sleep_growth": 1.0}))
        assert len(steps) < len(steps_that_change_row(linear, 30))

    def test_no_row_becomes_popular_during_warm_up(self):
        product = product_of(always_at_rest(warm_up=10))
        # Popular with step 11, judged at 13 with 13 updates.
        steps = steps_that_change_row(product, 22)
        assert steps == [*range(1, 14), 14, 16, 20]
        assert product.arrays()["row_states"].tolist() == [-1]

    def test_a_row_becomes_popular_with_its_min_updates(self):
        product = product_of(always_at_rest(min_updates=4), num_rows=2)
        for number in range(1, 4):
            product.step([1, 1], np.ones([2, 2]))  # twice in a batch is once looked up
            assert product.arrays()["row_states"].tolist() == [0, number]
        product.step([1, 1], np.ones([2, 2]))
        assert product.arrays()["row_states"].tolist() == [0, -1]
        entry = product.arrays()["pool_ints"][0]
        assert entry.tolist() == [1, 0, 4, 4, 0, 1, 0, 0]
        np.testing.assert_array_equal(
            product.arrays()["pool_floats"][0, 2:4], product.arrays()["table"][1]
        )

    def test_max_sleep_shrinks_with_the_strictness(self):
        product = product_of(always_at_rest())
        product.optimizer.set_strictness(0.25)
        steps = steps_that_change_row(product, 16)
        assert steps == [1, 2, 3, 4, 6, 8, 10, 12, 14, 16]

    def test_a_new_strictness_shortens_the_sleeps_to_come(self):
        product = product_of(always_at_rest())
        # Period 8 from step 12 on; the row is judged again in step 18.
        assert steps_that_change_row(product, 12)[-1] == 12
        product.optimizer.set_strictness(0.25)
        assert steps_that_change_row(product, 10) == [4, 6, 8, 10]

    def test_a_threshold_does_not_rise_under_a_strictness(self):
        policy = always_at_rest(threshold=None, target_skip=0.25, max_threshold=1e30)
        product = product_of(policy, num_rows=500)

        def threshold_after(rows):
            for row in rows:
                product.step([row], np.ones([1, 2]))
            return product.optimizer.skip_stats()["user"].drift_threshold

        assert threshold_after([0] * 200) == 1e30 / 1.25 / 1.25
        product.optimizer.set_strictness(0.5)
        assert threshold_after(range(100, 200)) == 1e30 / 1.25 / 1.25 / 2
        product.optimizer.set_strictness(1.0)
        assert threshold_after(range(200, 300)) == 1e30 / 1.25 / 1.25 * 1.25

    def test_strictness_outside_its_range_is_refused(self):
        product = product_of(always_at_rest())
        for strictness in (0, -1, 1.5, float("nan")):
            with pytest.raises(ValueError, match="strictness"):
                product.optimizer.set_strictness(strictness)

    def test_strictness_before_there_is_a_table_is_refused(self):
        with pytest.raises(ValueError, match="needs an optimizer that is built"):
            SlipstreamOptimizer(keras.optimizers.SGD(0.1)).set_strictness(0.5)


class TestWaking:
    """After step 16 the row sleeps until step 24, and one of entry 1 from step 15 until 23."""

    def test_a_changed_learning_rate_wakes(self):
        for rate, wakes in [(0.1, False), (0.09375, True), (0.15625, False), (0.1875, True)]:
            product = product_of(always_at_rest())
            steps = steps_that_change_row(product, 17, learning_rates={17: rate})
            assert (steps[-1] == 17) == wakes, rate

    def test_a_row_that_was_woken_stays_live_until_it_is_judged(self):
        product = product_of(always_at_rest())
        # Judged in step 12, and so with its second update after that, in step 14.
        steps = steps_that_change_row(product, 24, learning_rates={13: 0.5})
        assert steps[-5:] == [12, 13, 14, 16, 24]

    def test_a_rate_that_falls_slowly_wakes_in_the_end(self):
        product = product_of(always_at_rest())
        rates = {step: 0.125 * 0.95 ** (step - 15) for step in range(16, 24)}
        # 0.95^5 is the first power below 0.8.
        assert steps_that_change_row(product, 20, learning_rates=rates)[-2:] == [16, 20]

    def test_a_refresh_wakes_rows_looked_up_and_applies_what_others_hold(self):
        product = product_of(always_at_rest(refresh_every=19), num_rows=2)
        for _ in range(18):
            product.step([0, 1], np.ones([2, 2]))
        assert product.num_held() == 2 + 3
        product.step([1], np.ones([1, 2]))
        assert product.num_held() == 0
        np.testing.assert_array_equal(product.arrays()["table"][:, 0], [-0.125 * 18, -0.125 * 19])
        assert product.arrays()["pool_ints"][:, 2].tolist() == [19, 19]  # live_step

    def test_wake_all_applies_all_that_is_held(self):
        product = product_of(always_at_rest(), num_rows=3)
        for _ in range(16):
            product.step([0, 2], np.ones([2, 2]))
        product.optimizer.wake_all()
        arrays = product.arrays()
        assert product.num_held() == 0
        assert arrays["table"].tolist() == [[-2, -2], [0, 0], [-2, -2]]
        assert product.optimizer.skip_stats()["user"].num_stale_rows == 0
        product.step([0], np.ones([1, 2]))  # and is awake
        assert product.arrays()["table"][0].tolist() == [-2.125, -2.125]

    def test_wake_all_again_changes_nothing(self):
        product = Product(Stream().values(), "adam", always_at_rest())
        for batch in Stream().steps():
            product.step(*batch)
        product.optimizer.wake_all()
        before = values_of(product.optimizer.variables), product.arrays()
        product.optimizer.wake_all()
        for one, other in zip(values_of(product.optimizer.variables), before[0], strict=True):
            assert one.tobytes() == other.tobytes()
        assert product.arrays()["table"].tobytes() == before[1]["table"].tobytes()

    def test_wake_all_before_the_first_step_changes_nothing(self):
        product = product_of(always_at_rest())
        product.optimizer.wake_all()
        assert steps_that_change_row(product, 16)[-3:] == [8, 12, 16]


class TestSettling:
    def test_it_applies_what_is_held_and_rows_sleep_on(self):
        product = product_of(always_at_rest(), num_rows=2)
        for _ in range(18):
            product.step([0, 1], np.ones([2, 2]))
        assert product.num_held() == 2 + 3
        product.optimizer.settle()
        assert product.num_held() == 0
        np.testing.assert_array_equal(product.arrays()["table"], -0.125 * 18)
        assert product.optimizer.skip_stats()["user"].num_stale_rows == 2
        # Both are deferred until they would have woken anyway.
        assert steps_that_change_row(product, 6) == [6]
        assert product.arrays()["table"][0].tolist() == [-0.125 * 24] * 2

    def test_again_it_changes_nothing(self):
        product = Product(Stream().values(), "adam", always_at_rest())
        for batch in Stream().steps():
            product.step(*batch)
        product.optimizer.settle()
        before = product.arrays()
        product.optimizer.settle()
        for name, array in product.arrays().items():
            assert array.tobytes() == before[name].tobytes(), name


class TestCounterSetBack:
    """Whoever trains on from an earlier step, as with `initial_epoch`, loses nothing."""

    @pytest.mark.parametrize("num_steps, is_live", [(0, True), (3, True), (17, False)])
    @pytest.mark.parametrize("on_stale", ["defer", "skip"])
    def test_rows_are_live_and_sleep_again(self, on_stale, num_steps, is_live):
        product = product_of(always_at_rest(on_stale=on_stale))
        steps_that_change_row(product, 17)  # and sleeps in the next
        product.set_back(num_steps)
        steps = steps_that_change_row(product, 40)
        assert (steps[0] == 1) == is_live
        assert len(steps) < 20

    @pytest.mark.parametrize("num_steps", [0, 3])
    @pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "rmsprop_centered_momentum"])
    def test_nothing_is_lost_and_all_stays_finite(self, name, num_steps):
        product = product_of(always_at_rest(), name)
        steps_that_change_row(product, 18)
        product.set_back(num_steps)
        product.optimizer.settle()
        assert product.num_held() == 0
        assert steps_that_change_row(product, 40)
        product.optimizer.wake_all()
        arrays = product.arrays()
        assert all(np.isfinite(array).all() for array in arrays.values())
        if name == "sgd":
            np.testing.assert_array_equal(arrays["table"], -0.125 * 58)
        assert (arrays["pool_ints"][0, 2], arrays["pool_ints"][0, 1]) == (num_steps + 40, 0)


@pytest.mark.parametrize("on_stale", ["defer", "skip"])
@pytest.mark.parametrize("name", RULES)
def test_a_stale_row_keeps_its_bits_until_the_step_in_which_it_wakes(name, on_stale):
    stream = Stream(num_steps=60, pull=2.0)
    policy = policies(on_stale=on_stale, threshold=1e6, max_sleep=6)
    _check_rows(Product(stream.values(), name, policy), stream, on_stale)


def _sleeps(pool_ints, step):
    wake_step, held_steps, period, is_skipped = pool_ints[[1, 4, 5, 7]]
    return step < wake_step and (is_skipped or held_steps < period - 1)


def _check_rows(product, stream, on_stale):
    """From the variables before each step alone, says which rows it changes, and to what held."""
    num_woken = num_stale = 0
    after = product.arrays()
    for step, (ids, grads, rate) in enumerate(stream.steps(), start=1):
        before = after
        if on_stale == "skip":  # never read
            states = before["row_states"][ids]
            wakes = before["pool_ints"][-1 - np.minimum(states, -1), 1]
            grads[(states < 0) & (wakes > step)] = np.nan
        product.step(ids, grads, rate)
        after = product.arrays()
        sums = dict(zip(*summed_rows(ids, grads)))
        for row in range(len(stream.shares)):
            entry = -1 - before["row_states"][row]
            sleeps = entry >= 0 and _sleeps(before["pool_ints"][entry], step)
            changes = row in sums and not sleeps
            changed = {
                name
                for name in before
                if name in ("table", "last_steps") or name.startswith("slot")
                if before[name][row].tobytes() != after[name][row].tobytes()
            }
            # With Ftrl a row may stay at 0, but then its slots change.
            assert bool(changed) == changes, (changed, row, step)
            if sleeps and row in sums:
                num_stale += 1
                held = before["pool_floats"][entry, : stream.dim]
                if on_stale == "defer":
                    held = (held.astype(np.float64) + sums[row]).astype(np.float32)
                np.testing.assert_allclose(
                    after["pool_floats"][entry, : stream.dim], held, rtol=1e-6, atol=1e-6
                )
            elif entry >= 0 and row in sums:
                num_woken += before["pool_ints"][entry, 1] > 0
                assert not after["pool_floats"][entry, : stream.dim].any()
    assert num_stale > 40 and num_woken > 10
