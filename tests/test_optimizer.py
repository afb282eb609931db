"""Steps of the optimizer on given gradients, without a model."""

import re

import numpy as np
import pytest
import tensorflow as tf

from tests.models import assert_all_equal, embedding_of, random_table, slices, values_of
from tests.reference import ReferenceTable, clip_scale_by_norm, global_norm, summed_rows
from tf_slipstream import RowWiseAdagrad, SkipStats, SlipstreamOptimizer
from tf_slipstream._compat import IS_KERAS_3, keras
from tf_slipstream.state.table import set_counter

# By Keras class: the rule in `tests/reference.py`, and options. Powers of two and their small
# multiples are exact in float32; epsilon is large enough to be seen, but where Adam sums the
# movement of missed steps: that is exact while epsilon is small beside `sqrt(v)`, which decays.
ADAM = {"beta_1": 0.75, "beta_2": 0.875, "epsilon": 2.0**-26}
RMSPROP = {"rho": 0.75, "epsilon": 0.125}
CASES = [
    ("SGD", "sgd", {}),
    ("SGD", "sgd", {"momentum": 0.75}),
    ("SGD", "sgd", {"momentum": 0.75, "nesterov": True}),
    ("Adagrad", "adagrad", {"initial_accumulator_value": 0.25, "epsilon": 0.125}),
    ("RowWiseAdagrad", "row_wise_adagrad", {"epsilon": 0.125}),
    ("Adam", "adam", ADAM),
    ("Adam", "adam", ADAM | {"amsgrad": True, "epsilon": 0.125}),
    ("AdamW", "adamw", ADAM | {"weight_decay": 0.125}),
    ("RMSprop", "rmsprop", RMSPROP),
    ("RMSprop", "rmsprop", RMSPROP | {"momentum": 0.5}),
    ("RMSprop", "rmsprop", RMSPROP | {"momentum": 0.5, "centered": True}),
    ("Ftrl", "ftrl", {"initial_accumulator_value": 0.25}),
    ("Ftrl", "ftrl", {"learning_rate_power": -0.75, "l1_regularization_strength": 0.5}),
    ("Ftrl", "ftrl", {"l2_regularization_strength": 0.5, "beta": 0.5}),
    ("Ftrl", "ftrl", {"l2_shrinkage_regularization_strength": 0.25}),
]
# A row that is touched again after missed steps, repeats, the first and the last row, no id.
STEPS = [[5, 0, 1, 5, 0, 0], [1, 3, 3, 1], [], [5, 5, 3, 0]]
UNTOUCHED = [2, 4]
LEARNING_RATES = [0.125, 0.25, 0.0625, 0.125]
# As in test_reference.py: fewer than 32 roundings a step, of terms about as large as 1.
TOLERANCE = 32 * len(STEPS) * np.finfo("float32").eps

all_cases = pytest.mark.parametrize("optimizer, rule, options", CASES, ids=str)
keras_3_only = pytest.mark.skipif(not IS_KERAS_3, reason="tf_keras has no such argument")


def make_inner(optimizer, learning_rate=0.125, **options):
    made = RowWiseAdagrad if optimizer == "RowWiseAdagrad" else getattr(keras.optimizers, optimizer)
    return made(learning_rate, **options)


def table_of(values, **kwargs):
    """Returns the variable of a layer with these values."""
    return embedding_of(values, **kwargs).weights[0]


def dense_variable(values):
    return (keras if IS_KERAS_3 else tf).Variable(np.array(values, np.float32), name="dense")


def stepper(optimizer, variables, execution):
    """Returns a function that applies a list of gradients."""

    def step(grads):
        optimizer.apply_gradients(zip(grads, variables))

    return step if execution == "eager" else tf.function(step, reduce_retracing=True)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


def in_a_row(*words):
    """Returns a pattern of these words; the fallback's messages have quotes and lines between."""
    return "(?s)" + ".*".join(rf"(?<!\w){word}(?!\w)" for word in words)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    "execution, native_or_fallback",
    [("eager", "native"), ("function", "native"), ("eager", "fallback")],
    indirect=["native_or_fallback"],
)
@all_cases
def test_steps_equal_the_reference(optimizer, rule, options, execution, native_or_fallback, rng):
    values = random_table(6, 5)
    table = table_of(values)
    reference = ReferenceTable(values, rule, **options)
    wrapped = SlipstreamOptimizer(make_inner(optimizer, **options))
    step = stepper(wrapped, [table], execution)
    for number, (ids, learning_rate) in enumerate(zip(STEPS, LEARNING_RATES), start=1):
        grads = rng.normal(size=[len(ids), 5])
        wrapped.learning_rate = learning_rate
        step([slices(ids, grads, 6)])
        reference.step(ids, grads, learning_rate)
        assert int(wrapped.iterations) == number
    close(table.numpy(), reference.values)
    np.testing.assert_array_equal(table.numpy()[UNTOUCHED], values[UNTOUCHED])


@pytest.mark.parametrize("shared", [{}, {"weight_decay": 0.25}, {"clipvalue": 0.5}], ids=str)
@all_cases
def test_dense_variables_get_what_the_inner_optimizer_gives_them(
    optimizer, rule, options, shared, rng
):
    options = options | shared
    values = rng.normal(size=[4, 3]), rng.normal(size=[3])
    alone, beside = ([dense_variable(value) for value in values] for _ in range(2))
    plain = make_inner(optimizer, **options)
    wrapped = SlipstreamOptimizer(make_inner(optimizer, **options))
    table = table_of(random_table(6, 5))
    for _ in range(3):
        grads = [tf.constant(rng.normal(size=value.shape), tf.float32) for value in values]
        plain.apply_gradients(zip(grads, alone))
        grads.insert(1, slices([1, 1], rng.normal(size=[2, 5]), 6))
        wrapped.apply_gradients(zip(grads, [beside[0], table, beside[1]]))
    assert_all_equal(values_of(beside), values_of(alone))


@pytest.mark.parametrize("optimizer", ["SGD", "RowWiseAdagrad", "Adam"])
def test_learning_rate_schedules_count_steps(optimizer, native_or_fallback, rng):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1, 2], [0.5, 0.25, 0.125])
    values = random_table(6, 5)
    table = table_of(values)
    reference = ReferenceTable(
        values, "row_wise_adagrad" if "Row" in optimizer else optimizer.lower()
    )
    dense, dense_alone = dense_variable(np.ones([2])), dense_variable(np.ones([2]))
    wrapped = SlipstreamOptimizer(make_inner(optimizer, schedule))
    plain = make_inner(optimizer, schedule)
    step = stepper(wrapped, [table, dense], "function")
    # A schedule at step 1 of a boundary 1 is still before it.
    for learning_rate in [0.5, 0.5, 0.25, 0.125]:
        grads = rng.normal(size=[2, 5])
        step([slices([1, 1], grads, 6), tf.ones([2])])
        reference.step([1, 1], grads, learning_rate)
        plain.apply_gradients([(tf.ones([2]), dense_alone)])
    close(table.numpy(), reference.values)
    assert_all_equal(values_of([dense]), values_of([dense_alone]))


@pytest.mark.skipif(not IS_KERAS_3, reason="tf_keras calls a callable once, at construction")
def test_callable_learning_rates_are_called_in_each_step():
    rates = iter([1.0, 0.5])
    table = table_of(np.zeros([2, 1], np.float32))
    optimizer = SlipstreamOptimizer(keras.optimizers.SGD(lambda: next(rates)))
    for _ in range(2):
        optimizer.apply_gradients([(slices([0], [[1.0]], 2), table)])
    assert table.numpy()[:, 0].tolist() == [-1.5, 0.0]


class TestClipping:
    """The norms are those of gradients whose repeated ids are summed."""

    IDS = [[1, 4, 1, 1], [0, 2, 2]]

    def gradients(self, rng):
        return [rng.normal(size=[4, 5]), rng.normal(size=[3, 2])], rng.normal(size=[3])

    def step(self, rng, options, dtypes=("int64", "int64"), loss_scale=1.0):
        """Does a step of SGD; returns the values of two tables and a dense variable after it."""
        values = [random_table(6, 5), random_table(3, 2)]
        tables = [table_of(value, name=f"table_{i}") for i, value in enumerate(values)]
        dense = dense_variable([1.0, 2.0, 3.0])
        table_grads, dense_grad = self.gradients(rng)
        optimizer = SlipstreamOptimizer(keras.optimizers.SGD(0.5, **options))
        pairs = [
            (slices(ids, loss_scale * grads, len(value), dtype), table)
            for ids, grads, value, table, dtype in zip(
                self.IDS, table_grads, values, tables, dtypes
            )
        ]
        pairs.insert(1, (tf.constant(loss_scale * dense_grad, tf.float32), dense))
        optimizer.apply_gradients(pairs)
        return values_of([*tables, dense])

    def expected(self, rng, scales=(1.0, 1.0, 1.0), clipvalue=None):
        values = [random_table(6, 5), random_table(3, 2)]
        table_grads, dense_grad = self.gradients(rng)
        after = []
        for value, ids, grads, scale in zip(values, self.IDS, table_grads, scales):
            table = ReferenceTable(value, "sgd", clipvalue=clipvalue)
            table.step(ids, grads, 0.5, gradient_scale=scale)
            after.append(table.values)
        if clipvalue:
            dense_grad = np.clip(dense_grad, -clipvalue, clipvalue)
        return [*after, np.array([1.0, 2.0, 3.0]) - 0.5 * scales[2] * dense_grad]

    def norms(self, rng):
        table_grads, dense_grad = self.gradients(rng)
        sums = [summed_rows(ids, grads)[1] for ids, grads in zip(self.IDS, table_grads)]
        return [*sums, dense_grad]

    def check(self, actual, expected):
        for one, other in zip(actual, expected, strict=True):
            close(one, other)

    @pytest.mark.parametrize("clipnorm", [0.5, 2.0, 100.0])
    def test_clipnorm_bounds_each_variables_gradient(self, clipnorm, native_or_fallback):
        rngs = [np.random.default_rng(1) for _ in range(3)]
        sums = self.norms(rngs[0])
        scales = [clip_scale_by_norm(global_norm([grad]), clipnorm) for grad in sums]
        actual = self.step(rngs[1], {"clipnorm": clipnorm})
        self.check(actual, self.expected(rngs[2], scales))

    @pytest.mark.parametrize("dtypes", [("int64", "int64"), ("int32", "int64")], ids=str)
    @pytest.mark.parametrize("clipnorm", [0.5, 2.0, 100.0])
    def test_global_clipnorm_counts_tables_and_dense_variables(
        self, clipnorm, dtypes, native_or_fallback
    ):
        rngs = [np.random.default_rng(1) for _ in range(3)]
        scale = clip_scale_by_norm(global_norm(self.norms(rngs[0])), clipnorm)
        actual = self.step(rngs[1], {"global_clipnorm": clipnorm}, dtypes)
        self.check(actual, self.expected(rngs[2], [scale] * 3))

    def test_clipvalue_bounds_each_element_of_the_sums(self, native_or_fallback):
        rngs = [np.random.default_rng(1) for _ in range(2)]
        actual = self.step(rngs[0], {"clipvalue": 0.25})
        self.check(actual, self.expected(rngs[1], clipvalue=0.25))

    @keras_3_only
    @pytest.mark.parametrize("clipping", [{}, {"clipnorm": 0.5}, {"global_clipnorm": 0.5}], ids=str)
    def test_a_fixed_loss_scale_is_divided_out_before_clipping(self, clipping):
        rngs = [np.random.default_rng(1) for _ in range(2)]
        actual = self.step(rngs[0], clipping | {"loss_scale_factor": 8.0}, loss_scale=8.0)
        self.check(actual, self.step(rngs[1], clipping))

    @keras_3_only
    def test_a_fixed_loss_scale_multiplies_the_loss(self):
        optimizer = SlipstreamOptimizer(keras.optimizers.SGD(0.5, loss_scale_factor=8.0))
        assert float(optimizer.scale_loss(tf.constant(2.0))) == 16.0
        optimizer.loss_scale_factor = 4.0
        assert optimizer.inner_optimizer.loss_scale_factor == 4.0
        assert float(optimizer.scale_loss(tf.constant(2.0))) == 8.0


class TestWeightDecay:
    def step(self, exclude=None, **options):
        """Returns two tables and a dense variable after a step with zero gradients."""
        tables = [table_of(np.ones([3, 2], np.float32), name=name) for name in "ab"]
        dense = dense_variable(np.ones([2]))
        optimizer = SlipstreamOptimizer(keras.optimizers.SGD(0.5, **options))
        if exclude:
            exclude(optimizer, tables, dense)
        zeros = slices([1, 1], np.zeros([2, 2]), 3)
        optimizer.apply_gradients([(zeros, tables[0]), (zeros, tables[1]), (tf.zeros([2]), dense)])
        return [value.tolist() for value in values_of([*tables, dense])]

    DECAYED = [[1, 1], [0.875, 0.875], [1, 1]]
    KEPT = [[1, 1]] * 3

    def test_rows_decay_once_in_the_steps_that_look_them_up(self, native_or_fallback):
        assert self.step(weight_decay=0.25) == [self.DECAYED, self.DECAYED, [0.875, 0.875]]
        assert self.step() == [self.KEPT, self.KEPT, [1, 1]]

    @pytest.mark.parametrize("name", ["SGD", "AdamW"])
    def test_missed_steps_decay_at_the_next_lookup_and_when_settled(self, name, native_or_fallback):
        table = table_of(np.ones([3, 2], np.float32))
        inner = make_inner(name, 0.5, weight_decay=0.25)
        optimizer = SlipstreamOptimizer(inner)
        once, zeros = 0.875, np.zeros([1, 2])
        for ids in ([0], [0], [1]):
            optimizer.apply_gradients([(slices(ids, zeros, 3), table)])
        assert table.numpy()[:, 0].tolist() == [once**2, once**3, 1]
        for _ in range(2):
            optimizer.settle()
            # A row that was never looked up waits for its first lookup.
            assert table.numpy()[:, 0].tolist() == [once**3, once**3, 1]
        optimizer.apply_gradients([(slices([2], zeros, 3), table)])
        optimizer.settle()
        assert table.numpy()[:, 0].tolist() == [once**4] * 3

    def test_excluded_variables_do_not_decay(self):
        def on_inner(optimizer, tables, dense):
            optimizer.inner_optimizer.exclude_from_weight_decay(var_list=[tables[0]])

        def on_wrapper(optimizer, tables, dense):
            optimizer.exclude_from_weight_decay(var_list=[tables[0], dense])

        def by_name(optimizer, tables, dense):
            optimizer.exclude_from_weight_decay(var_names=["embeddings"])

        decay = {"weight_decay": 0.25}
        assert self.step(on_inner, **decay) == [self.KEPT, self.DECAYED, [0.875, 0.875]]
        assert self.step(on_wrapper, **decay) == [self.KEPT, self.DECAYED, [1, 1]]
        assert self.step(by_name, **decay) == [self.KEPT, self.KEPT, [0.875, 0.875]]


class TestRefusedInner:
    NO_RULE = ["Adadelta", "Adamax", "Nadam", "Adafactor", "Lion"]

    @pytest.mark.parametrize("name", [*NO_RULE, *(["Lamb"] if IS_KERAS_3 else [])])
    def test_optimizers_without_a_sparse_rule_are_refused(self, name):
        supported = "SGD, Adagrad, RowWiseAdagrad, Adam, AdamW, RMSprop, Ftrl"
        with pytest.raises(ValueError, match=f"rules? .*{supported}.*got .*{name}"):
            SlipstreamOptimizer(getattr(keras.optimizers, name)())

    @pytest.mark.parametrize("inner", [None, 0.5, keras.optimizers.Adam], ids=str)
    def test_what_is_no_optimizer_is_refused(self, inner):
        with pytest.raises(ValueError, match=re.escape(repr(inner))):
            SlipstreamOptimizer(inner)

    def test_wrapping_twice_is_refused(self):
        with pytest.raises(ValueError, match="got .*SlipstreamOptimizer"):
            SlipstreamOptimizer(SlipstreamOptimizer(keras.optimizers.SGD()))

    def test_a_loss_scale_optimizer_belongs_outside(self):
        inner = keras.mixed_precision.LossScaleOptimizer(keras.optimizers.Adam())
        with pytest.raises(ValueError, match="Put the LossScaleOptimizer around"):
            SlipstreamOptimizer(inner)

    def test_a_subclass_with_its_own_update_is_refused(self):
        class OtherAdam(keras.optimizers.Adam):
            def update_step(self, *args):
                pass

        with pytest.raises(ValueError, match="got .*OtherAdam"):
            SlipstreamOptimizer(OtherAdam())

    def test_a_subclass_without_its_own_update_is_taken(self, rng):
        class Renamed(keras.optimizers.Adam):
            pass

        values, grads = random_table(6, 5), rng.normal(size=[2, 5])
        table, reference = table_of(values), ReferenceTable(values, "adam")
        SlipstreamOptimizer(Renamed(0.125)).apply_gradients([(slices([1, 1], grads, 6), table)])
        reference.step([1, 1], grads, 0.125)
        close(table.numpy(), reference.values)

    def test_use_ema_is_refused(self):
        with pytest.raises(ValueError, match="cannot be used with `use_ema` .*Construct Adam"):
            SlipstreamOptimizer(keras.optimizers.Adam(use_ema=True))

    @keras_3_only
    def test_gradient_accumulation_is_refused(self):
        inner = keras.optimizers.SGD(gradient_accumulation_steps=2)
        with pytest.raises(ValueError, match=r"`gradient_accumulation_steps` \(got 2\)"):
            SlipstreamOptimizer(inner)

    def test_a_policy_that_is_none_of_ours_is_refused(self):
        with pytest.raises(ValueError, match="policy"):
            SlipstreamOptimizer(keras.optimizers.SGD(), policy="often")


class TestFailedSteps:
    """A step that fails in a table changes nothing: no table, slot, dense variable or counter."""

    @pytest.mark.parametrize(
        "execution, ids, bad_value, words",
        [
            ("eager", [1, 5, 1], float("nan"), ["gradient of row", 1, "is NaN or infinite"]),
            ("eager", [1, 5, 1], float("-inf"), ["gradient of row", 1, "is NaN or infinite"]),
            ("eager", [1, 6, 1], 0.0, ["id", 6, "at position", 1, r"is not in \[0, 6\)"]),
            ("eager", [1, -1, 1], 0.0, ["id", -1, "at position", 1, r"is not in \[0, 6\)"]),
            ("function", [1, 5, 1], float("inf"), ["gradient of row", 1, "is NaN or infinite"]),
            ("function", [1, 6, 1], 0.0, ["id", 6, "at position", 1, r"is not in \[0, 6\)"]),
        ],
        ids=str,
    )
    def test_nothing_changes(self, execution, ids, bad_value, words, native_or_fallback):
        tables = [table_of(random_table(6, 5), name=name) for name in ("first", "second", "third")]
        dense = dense_variable([1.0, 2.0])
        variables = [dense, *tables]
        optimizer = SlipstreamOptimizer(keras.optimizers.Adam())
        step = stepper(optimizer, variables, execution)
        good = slices([1, 5, 1], np.ones([3, 5]), 6)
        bad_grads = np.ones([3, 5])
        bad_grads[2, 4] = bad_value
        step([tf.ones([2]), good, good, good])

        before = values_of([*variables, *optimizer.variables])
        with pytest.raises(tf.errors.InvalidArgumentError, match=in_a_row("second", *words)):
            step([tf.ones([2]), good, slices(ids, bad_grads, 6), good])
        assert_all_equal(values_of([*variables, *optimizer.variables]), before)
        assert int(optimizer.iterations) == 1
        step([tf.ones([2]), good, good, good])
        assert int(optimizer.iterations) == 2

    @pytest.mark.parametrize("clipping", ["clipnorm", "global_clipnorm", "clipvalue"])
    def test_clipping_does_not_hide_nan(self, clipping, native_or_fallback):
        table, dense = table_of(random_table(6, 5)), dense_variable([1.0])
        optimizer = SlipstreamOptimizer(keras.optimizers.SGD(**{clipping: 1.0}))
        grads = [slices([1], np.full([1, 5], np.nan), 6), tf.ones([1])]
        before = values_of([table, dense])
        with pytest.raises(
            tf.errors.InvalidArgumentError, match=in_a_row("row", 1, "is NaN or infinite")
        ):
            optimizer.apply_gradients(zip(grads, [table, dense]))
        assert_all_equal(values_of([table, dense]), before)


class TestLossScaleOptimizer:
    """Around a `SlipstreamOptimizer`."""

    def make(self, scale=8.0):
        table, dense = table_of(random_table(6, 5)), dense_variable([1.0, 2.0])
        wrapped = SlipstreamOptimizer(keras.optimizers.Adam(0.125))
        scaling = keras.mixed_precision.LossScaleOptimizer(wrapped, initial_scale=scale)
        return scaling, wrapped, table, dense

    def scale_of(self, scaling):
        return float(scaling.dynamic_scale if IS_KERAS_3 else scaling.loss_scale)

    def apply(self, scaling, table, dense, table_grads, execution):
        # In Keras 3 the gradients given are scaled; in tf_keras the loop unscales them.
        grads = [slices([1, 5, 1], table_grads, 6), tf.ones([2])]
        factor = self.scale_of(scaling) if scaling.variables else 8.0
        grads = [
            tf.IndexedSlices(factor * grads[0].values, grads[0].indices, grads[0].dense_shape),
            factor * grads[1],
        ]
        if not IS_KERAS_3:
            scaling.get_scaled_loss(tf.constant(1.0))
            grads = scaling.get_unscaled_gradients(grads)
        stepper(scaling, [table, dense], execution)(grads)

    @pytest.mark.parametrize("execution", ["eager", "function"])
    def test_a_finite_step_is_that_of_unscaled_gradients(self, execution, rng):
        scaling, _, table, dense = self.make()
        scaling.build([table, dense])
        _, plain, plain_table, plain_dense = self.make()
        for _ in range(2):
            grads = rng.normal(size=[3, 5])
            self.apply(scaling, table, dense, grads, execution)
            plain.apply_gradients(
                [(slices([1, 5, 1], grads, 6), plain_table), (tf.ones([2]), plain_dense)]
            )
        assert_all_equal(values_of([table, dense]), values_of([plain_table, plain_dense]))
        # Of the inner one: the outer one of Keras 3.8 counts nothing.
        assert int(scaling.inner_optimizer.iterations) == int(plain.iterations) == 2

    @pytest.mark.parametrize("execution", ["eager", "function"])
    @pytest.mark.parametrize("bad_value", [float("inf"), float("nan")])
    def test_a_non_finite_step_changes_nothing_and_halves_the_scale(self, bad_value, execution):
        scaling, wrapped, table, dense = self.make()
        scaling.build([table, dense])
        self.apply(scaling, table, dense, np.ones([3, 5]), execution)
        stats = wrapped.skip_stats()
        table_states = [v for v in wrapped.variables if "iteration" not in v.name]
        before = values_of([table, dense, *table_states])
        bad_grads = np.ones([3, 5])
        bad_grads[1, 2] = bad_value
        self.apply(scaling, table, dense, bad_grads, execution)
        assert self.scale_of(scaling) == 4.0
        assert_all_equal(values_of([table, dense, *table_states]), before)
        assert wrapped.skip_stats() == stats
        self.apply(scaling, table, dense, np.ones([3, 5]), execution)
        assert not np.array_equal(values_of([table])[0], before[0])


class TestRowWiseAdagradAlone:
    """Under no `SlipstreamOptimizer`: its update of any variable."""

    OPTIONS = {"initial_accumulator_value": 0.25, "epsilon": 0.125}

    def check(self, variable, gradients, reference, steps, shape):
        optimizer = RowWiseAdagrad(0.5, **self.OPTIONS)
        for gradient, (ids, grads) in zip(gradients, steps):
            optimizer.apply_gradients([(gradient, variable)])
            reference.step(ids, grads, 0.5)
        close(variable.numpy(), reference.values.reshape(shape))

    @pytest.mark.parametrize("shape", [(4, 3), (4, 1), (2, 3, 2), (3,), ()], ids=str)
    def test_dense_gradients_share_an_accumulator_per_row(self, shape, rng):
        # Rows are slices along the first axis; elements where there is no other.
        rows = [-1, 1] if len(shape) < 2 else [shape[0], -1]
        values, *grads = rng.normal(size=[4, *shape]).astype("float32")
        reference = ReferenceTable(values.reshape(rows), "row_wise_adagrad", **self.OPTIONS)
        steps = [(range(len(reference.values)), grad.reshape(rows)) for grad in grads]
        self.check(dense_variable(values), map(tf.constant, grads), reference, steps, shape)

    def test_sparse_gradients_are_summed_by_row(self, rng):
        values = random_table(6, 5)
        reference = ReferenceTable(values, "row_wise_adagrad", **self.OPTIONS)
        steps = [(ids, rng.normal(size=[len(ids), 5])) for ids in STEPS]
        gradients = [slices(ids, grads, 6) for ids, grads in steps]
        variable = dense_variable(values)
        self.check(variable, gradients, reference, steps, (6, 5))
        np.testing.assert_array_equal(variable.numpy()[UNTOUCHED], values[UNTOUCHED])

    def test_an_accumulator_is_never_negative(self):
        with pytest.raises(ValueError, match="initial_accumulator_value=-1"):
            RowWiseAdagrad(initial_accumulator_value=-1)


class TestTables:
    def test_tables_may_have_ids_of_different_dtypes(self, native_or_fallback, rng):
        values = random_table(6, 5)
        grads = rng.normal(size=[3, 5])
        tables = [table_of(values, name=name) for name in "abc"]
        optimizer = SlipstreamOptimizer(keras.optimizers.Adam(0.125))
        for _ in range(2):
            optimizer.apply_gradients(
                (slices([1, 5, 1], grads, 6, dtype), table)
                for table, dtype in zip(tables, ["int32", "int64", "int32"])
            )
        reference = ReferenceTable(values, "adam")
        for _ in range(2):
            reference.step([1, 5, 1], grads, 0.125)
        for table in tables:
            close(table.numpy(), reference.values)

    def test_a_dense_gradient_of_a_table_updates_every_row(self, native_or_fallback, rng):
        values, grad = random_table(6, 5), rng.normal(size=[6, 5])
        table, reference = table_of(values), ReferenceTable(values, "adam")
        optimizer = SlipstreamOptimizer(keras.optimizers.Adam(0.125))
        for _ in range(2):
            optimizer.apply_gradients([(tf.constant(grad, tf.float32), table)])
            reference.step(range(6), grad, 0.125)
        close(table.numpy(), reference.values)

    def test_a_table_without_gradient_is_named_and_the_others_train(self):
        tables = [table_of(random_table(6, 5), name=name) for name in "ab"]
        dense = dense_variable([1.0])
        optimizer = SlipstreamOptimizer(keras.optimizers.SGD(0.5))
        before = values_of([*tables, dense])
        grads = [None, slices([1], np.ones([1, 5]), 6), tf.ones([1])]
        with pytest.warns(UserWarning, match=r"Gradients do not exist for variables \['embeddings"):
            optimizer.apply_gradients(zip(grads, [*tables, dense]))
        after = values_of([*tables, dense])
        assert_all_equal(after[:1], before[:1])
        np.testing.assert_array_equal(after[1][1], before[1][1] - 0.5)
        assert after[2].tolist() == [0.5]
        assert int(optimizer.iterations) == 1
        assert optimizer.skip_stats()["a"].num_lookups == 0

    def test_without_any_gradient_a_step_is_an_error(self):
        table = table_of(random_table(6, 5))
        with pytest.raises(ValueError, match="No gradients provided for any variable"):
            SlipstreamOptimizer(keras.optimizers.SGD()).apply_gradients([(None, table)])

    def test_a_model_without_tables_trains_as_with_the_inner_optimizer(self):
        dense, alone = dense_variable([1.0, 2.0]), dense_variable([1.0, 2.0])
        wrapped = SlipstreamOptimizer(keras.optimizers.Adam(0.125, global_clipnorm=0.5))
        plain = keras.optimizers.Adam(0.125, global_clipnorm=0.5)
        for grad in ([1.0, 2.0], [3.0, -1.0]):
            wrapped.apply_gradients([(tf.constant(grad), dense)])
            plain.apply_gradients([(tf.constant(grad), alone)])
        assert_all_equal(values_of([dense]), values_of([alone]))
        assert wrapped.skip_stats() == {}
        assert int(wrapped.iterations) == 2

    @pytest.mark.parametrize(
        "layers, expected",
        [
            (["user", "user"], ["user", "user_1"]),
            (["a", "a_1", "a", "a"], ["a", "a_1", "a_2", "a_3"]),
            (["a", "a_2", "a", "a"], ["a", "a_2", "a_1", "a_3"]),
        ],
        ids=str,
    )
    def test_tables_of_layers_with_the_same_name_are_numbered(self, layers, expected):
        tables = [table_of(random_table(6, 5), name=name) for name in layers]
        optimizer = SlipstreamOptimizer(keras.optimizers.SGD())
        optimizer.apply_gradients(
            (slices([0] * number, np.ones([number, 5]), 6), table)
            for number, table in enumerate(tables)
        )
        stats = optimizer.skip_stats()
        assert {name: one.num_lookups for name, one in stats.items()} == {
            name: number for number, name in enumerate(expected)
        }


class Clip(keras.constraints.Constraint):
    """A constraint of a user's own."""

    def __call__(self, w):
        return tf.clip_by_value(w, -0.5, 0.5)


class TestConstraints:
    """`embeddings_constraint`, after a step of SGD on rows 1 and 5."""

    def step(self, constraint):
        """Returns the table after a step, and what it would be without constraint."""
        values, grads = random_table(6, 5), np.random.default_rng(1).normal(size=[3, 5])
        table = table_of(values, embeddings_constraint=constraint)
        optimizer = SlipstreamOptimizer(keras.optimizers.SGD(0.5))
        optimizer.apply_gradients([(slices([1, 5, 1], grads, 6), table)])
        reference = ReferenceTable(values, "sgd")
        reference.step([1, 5, 1], grads, 0.5)
        return table.numpy(), reference.values.astype("float32")

    @pytest.mark.parametrize(
        "constraint",
        [
            keras.constraints.NonNeg(),
            keras.constraints.MaxNorm(0.5, axis=1),
            keras.constraints.MaxNorm(0.5, axis=-1),
            keras.constraints.UnitNorm(axis=1),
            keras.constraints.MinMaxNorm(0.5, 1.0, axis=1),
        ],
        ids=["NonNeg", "MaxNorm 1", "MaxNorm -1", "UnitNorm 1", "MinMaxNorm 1"],
    )
    def test_those_of_rows_are_applied_to_the_rows_of_the_step(self, constraint):
        actual, expected = self.step(constraint)
        assert not np.allclose(constraint(expected), expected)
        expected[[1, 5]] = constraint(expected[[1, 5]])
        close(actual, expected)

    @pytest.mark.parametrize(
        "constraint",
        [
            keras.constraints.MaxNorm(0.5),  # along axis 0
            keras.constraints.MaxNorm(0.5, axis=[0, 1]),
            Clip(),
        ],
        ids=["MaxNorm 0", "MaxNorm of all", "one of the user's"],
    )
    def test_others_are_applied_to_the_whole_table(self, constraint):
        actual, expected = self.step(constraint)
        close(actual, constraint(expected))

    @pytest.mark.parametrize("axis, marked", [(0, -1), (1, 0b100010)])
    def test_every_row_that_it_may_write_is_marked_as_changed(self, axis, marked):
        constraint = keras.constraints.MaxNorm(0.5, axis=axis)
        table = table_of(random_table(6, 5), name="user", embeddings_constraint=constraint)
        optimizer = SlipstreamOptimizer(keras.optimizers.SGD(0.5))
        gradient = slices([1, 5, 1], np.ones([3, 5], np.float32), 6)
        optimizer.apply_gradients([(gradient, table)])
        assert optimizer.tables["user"].changed_rows.numpy().tolist() == [marked]

    @pytest.mark.parametrize("wakes", [False, True])
    @pytest.mark.parametrize("axis", [0, 1])
    def test_to_read_the_table_afterwards_is_not_to_copy_it(self, axis, wakes):
        constraint = keras.constraints.MaxNorm(0.5, axis=axis)
        table = table_of(random_table(6, 5), name="user", embeddings_constraint=constraint)
        optimizer = SlipstreamOptimizer(keras.optimizers.Adam(0.5))
        for ids in ([1, 5, 1], [2, 3, 4]):
            gradient = slices(ids, np.ones([3, 5], np.float32), 6)
            optimizer.apply_gradients([(gradient, table)])
        if wakes:
            optimizer.wake_all()
        variable = optimizer.tables["user"].table
        read = [np.asarray(memoryview(variable.read_value())) for _ in range(2)]
        assert np.shares_memory(*read)

    def test_a_subclass_of_ones_own_is_applied_to_the_whole_table(self):
        class NonNeg(keras.constraints.NonNeg):
            def __call__(self, table):
                return table * 0.5

        actual, expected = self.step(NonNeg())
        close(actual, expected * 0.5)


class TestState:
    def test_skip_stats_count_lookups_and_distinct_rows(self, native_or_fallback):
        table = table_of(random_table(6, 5), name="user")
        optimizer = SlipstreamOptimizer(keras.optimizers.Adagrad())
        assert optimizer.skip_stats() == {}
        for ids in STEPS:
            optimizer.apply_gradients([(slices(ids, np.ones([len(ids), 5]), 6), table)])
        (stats,) = optimizer.skip_stats().values()
        assert stats == SkipStats(
            num_lookups=14,
            num_skipped_lookups=0,
            num_deferred_lookups=0,
            num_row_updates=8,
            num_skipped_row_updates=0,
            num_deferred_row_updates=0,
            num_stale_rows=0,
            num_rows=6,
            drift_threshold=0.0,
        )
        assert {type(value) for value in vars(stats).values()} == {int, float}
        assert type(stats.drift_threshold) is float

    def test_variables_are_its_own_then_the_inner_ones(self):
        table, dense = table_of(random_table(6, 5), name="user"), dense_variable([1.0])
        optimizer = SlipstreamOptimizer(keras.optimizers.Adam())
        optimizer.build([table, dense])
        variables = list(optimizer.variables)
        inner = list(optimizer.inner_optimizer.variables)
        assert [id(v) for v in variables[-len(inner) :]] == [id(v) for v in inner]
        assert len({id(v) for v in variables}) == len(variables)
        shapes = [tuple(v.shape) for v in variables[: -len(inner)] if "user" in v.name]
        assert shapes[:3] == [(6, 5), (6, 5), (6,)]  # two moments, the last steps
        # No state of a table's size in the inner optimizer.
        assert all(len(v.shape) < 2 for v in inner)

    def test_set_weights_sets_all_variables(self, rng):
        made = []
        for seed in (0, 1):
            table, dense = table_of(random_table(6, 5)), dense_variable([1.0])
            optimizer = SlipstreamOptimizer(keras.optimizers.Adam())
            grads = np.random.default_rng(seed).normal(size=[2, 5])
            for _ in range(seed + 1):
                optimizer.apply_gradients(
                    [(slices([1, 1], grads, 6), table), (tf.constant([1.0]), dense)]
                )
            made.append(optimizer)
        weights = values_of(made[1].variables)
        made[0].set_weights(weights)
        assert_all_equal(values_of(made[0].variables), weights)
        assert int(made[0].iterations) == 2
        with pytest.raises(ValueError):
            made[0].set_weights(weights[:-1])

    def test_learning_rate_is_the_inner_ones(self):
        optimizer = SlipstreamOptimizer(keras.optimizers.SGD(0.5))
        assert float(optimizer.learning_rate) == 0.5
        optimizer.learning_rate = 0.25
        assert float(optimizer.inner_optimizer.learning_rate) == 0.25

    @pytest.mark.skipif(IS_KERAS_3, reason="in Keras 3 `iterations` cannot be replaced")
    def test_iterations_can_be_set_before_it_is_built(self):
        optimizer = SlipstreamOptimizer(keras.optimizers.SGD(0.5))
        steps = tf.Variable(7, dtype=tf.int64)
        optimizer.iterations = steps
        table = table_of(random_table(6, 5))
        optimizer.apply_gradients([(slices([1], np.ones([1, 5]), 6), table)])
        assert int(steps) == int(optimizer.iterations) == 8

    @keras_3_only
    def test_apply_needs_no_variables_once_it_is_built(self):
        table = table_of(np.zeros([6, 5], np.float32))
        optimizer = SlipstreamOptimizer(keras.optimizers.SGD(0.5))
        grads = [slices([1], np.ones([1, 5]), 6)]
        with pytest.raises(ValueError, match=r"call `optimizer\.build\(trainable_variables\)`"):
            optimizer.apply(grads)
        optimizer.build([table])
        optimizer.apply(grads)
        assert table.numpy()[1].tolist() == [-0.5] * 5

    def test_no_gradients_at_all_are_no_step(self):
        optimizer = SlipstreamOptimizer(keras.optimizers.SGD(0.5))
        optimizer.apply_gradients([])
        assert int(optimizer.iterations) == 0


@pytest.mark.parametrize("ask", ["skip_stats", "wake_all"])
def test_a_step_that_a_gpu_refused_is_told_once_with_the_tables_name(ask):
    """A GPU counts it in the table's counters, and no later step may come to tell."""
    table = table_of(random_table(6, 5), name="user")
    optimizer = SlipstreamOptimizer(keras.optimizers.SGD())
    optimizer.apply_gradients([(slices([0], np.ones([1, 5]), 6), table)])
    set_counter(optimizer.tables["user"], "num_refused_steps", 2)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"'user': 2 step\(s\) had an id"):
        getattr(optimizer, ask)()
    getattr(optimizer, ask)()
    assert optimizer.skip_stats()["user"].num_lookups == 1
