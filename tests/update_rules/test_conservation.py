"""Checks that the gradients of a row that misses steps have the whole effect that Keras gives them.

Streams of sparse gradients that do not depend on the rows' values. A dense optimizer does every
step, with zeros where there is no gradient, and so many further ones that all momentum is spent;
it is `tests/reference.py`'s recurrence in NumPy, which `tests/test_reference.py` holds against
Keras. After settling, each row has moved as far, within a hundredth.
"""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tests.models import embedding_of, in_turn
from tests.ops import tables
from tf_slipstream import SlipstreamOptimizer, update_rules
from tf_slipstream._compat import IS_KERAS_3, keras
from tf_slipstream.ops.apply_rows import apply_rows
from tf_slipstream.ops.settle_rows import settle_rows

optimizers, schedules = keras.optimizers, keras.optimizers.schedules

TOLERANCE = 0.01
DIM = 4
# Steps without gradients after which no momentum is left: 0.9^300 is 2e-14.
NUM_LAST_STEPS = 300


@dataclasses.dataclass(frozen=True)
class Case:
    """A Keras optimizer with its defaults but for `options`, and the same in the reference."""

    make: type
    reference: str
    options: dict = dataclasses.field(default_factory=dict)
    weight_decay: float = 0.0

    def optimizer(self, learning_rate=None):
        """Returns the Keras optimizer, with its default learning rate or another."""
        rate = {} if learning_rate is None else {"learning_rate": learning_rate}
        decay = {"weight_decay": self.weight_decay} if self.weight_decay else {}
        return self.make(**rate, **decay, **self.options)

    @property
    def rule(self):
        optimizer = self.optimizer()
        return update_rules.rules_by_optimizer()[type(optimizer).__name__](optimizer)

    @property
    def learning_rate(self):
        return float(np.asarray(self.optimizer().learning_rate))

    def dense(self, stream, rates):
        """Returns the rows after every step and further ones, float64."""
        rule = reference.RULES[self.reference](**self.options)
        rows = stream.values.astype(np.float64)
        initial = rule.initial_slots(DIM).items()
        slots = {name: np.zeros_like(rows) + value for name, value in initial}
        for step in range(1, stream.num_steps + NUM_LAST_STEPS + 1):
            grads, rate = stream.dense_gradient(step), rates[step - 1]
            rows = rows * (1 - rate * self.weight_decay)
            rows, slots = rule.update(rows, slots, grads, rate, step)
        return rows


CASES = {
    "adam": Case(optimizers.Adam, "adam"),
    "adamw": Case(optimizers.AdamW, "adam", weight_decay=0.004),
    "amsgrad": Case(optimizers.Adam, "adam", {"amsgrad": True}),
    "momentum": Case(optimizers.SGD, "sgd", {"momentum": 0.9}),
    "nesterov": Case(optimizers.SGD, "sgd", {"momentum": 0.9, "nesterov": True}),
    "momentum_decay": Case(optimizers.SGD, "sgd", {"momentum": 0.9}, weight_decay=0.004),
    "rmsprop_momentum": Case(optimizers.RMSprop, "rmsprop", {"momentum": 0.9}),
    "rmsprop_centered_momentum": Case(
        optimizers.RMSprop, "rmsprop", {"momentum": 0.9, "centered": True}
    ),
    # Without momentum nothing is owed, and only slots decay; but by weight decay.
    "sgd_decay": Case(optimizers.SGD, "sgd", weight_decay=0.004),
    "rmsprop_centered": Case(optimizers.RMSprop, "rmsprop", {"centered": True}),
    "adagrad": Case(optimizers.Adagrad, "adagrad"),
    # An epsilon beside which the root of v matters, and is itself of no account.
    "adam_epsilon": Case(optimizers.Adam, "adam", {"epsilon": 1e-2}),
    "amsgrad_epsilon": Case(optimizers.Adam, "adam", {"epsilon": 1e-2, "amsgrad": True}),
}
GAPS = (0, 1, 2, 5, 20, 100, 1_000)


@dataclasses.dataclass(frozen=True)
class Stream:
    """Gradients of some steps of one table.

    Attributes:
        touches: Bool `[num_steps, num_rows]`, which rows each step looks up.
        patterns: One name per row.
        size: Of a gradient's elements, about.
        seed: Of values and gradients.
    """

    touches: np.ndarray
    patterns: list
    size: float = 1.0
    seed: int = 0

    @property
    def num_steps(self):
        return len(self.touches)

    @property
    def num_rows(self):
        return self.touches.shape[1]

    @property
    def values(self):
        random = np.random.default_rng([self.seed, 0])
        return random.normal(size=[self.num_rows, DIM]).astype(np.float32)

    def dense_gradient(self, step):
        """Returns float32 `[num_rows, DIM]`, 0 where the step has no gradient."""
        if step > self.num_steps:
            return np.zeros([self.num_rows, DIM])
        random = np.random.default_rng([self.seed, step])
        grads = self.size * random.normal(size=[self.num_rows, DIM])
        return np.where(self.touches[step - 1][:, np.newaxis], grads, 0).astype(np.float32)

    def steps(self):
        """Yields number, ids and gradients of each step that has any."""
        for step in range(1, self.num_steps + 1):
            ids = np.flatnonzero(self.touches[step - 1])
            if len(ids):
                yield step, ids, self.dense_gradient(step)[ids]

    def assert_conserved(self, rows, dense, patterns=None):
        """Fails unless rows have moved as far as a dense optimizer's."""
        moved = np.linalg.norm(dense - self.values, axis=1)
        errors = np.linalg.norm(rows - dense, axis=1) / moved
        # A row that no step looked up has only a weight decay, which it gets with its first touch.
        are_touched = self.touches.any(axis=0)
        worst = {}
        for pattern, error, is_touched in zip(self.patterns, errors, are_touched, strict=True):
            if is_touched and (patterns is None or pattern in patterns):
                worst[pattern] = max(worst.get(pattern, 0.0), error)
        assert worst and all(error <= TOLERANCE for error in worst.values()), worst


def gap_stream(num_steps, first_step=1, gaps=GAPS, **fields):
    """Returns a stream with rows of each gap, of mixtures of all, of bursts and of pure chance."""
    random = np.random.default_rng(num_steps)
    columns, patterns = [], []

    def add(pattern, steps):
        column = np.zeros(num_steps + 1, bool)
        column[[step for step in steps if first_step <= step <= num_steps]] = True
        columns.append(column[1:])
        patterns.append(pattern)

    def steps_with(gaps_between):
        return np.cumsum([first_step, *(1 + gap for gap in gaps_between)])

    for gap in gaps:
        for first in {first_step, first_step + int(random.integers(gap + 1))}:
            add(gap, range(first, num_steps + 1, gap + 1))
    for _ in range(8):
        add("mixture", steps_with(random.choice(gaps, num_steps)))
        add("rare", steps_with(random.choice(gaps[1:], num_steps)))
        bursts = [[0] * random.integers(5) + [random.choice(gaps)] for _ in range(num_steps)]
        add("bursts", steps_with(np.concatenate(bursts)))
    for share in (0.5, 0.2, 0.05, 0.01):
        add("chance", 1 + np.flatnonzero(random.random(num_steps) < share))
    return Stream(np.array(columns).T, patterns, **fields)


def train(case, stream, native=True):
    """Returns the `TableState` after a stream; it is not settled."""
    rule, state = case.rule, tables.new_state(case.rule, stream.values)
    rate = case.learning_rate
    with tables.native_or_fallback_ops(native):
        for step, ids, grads in stream.steps():
            apply_rows(
                rule,
                [state],
                [tables.slices(ids, grads)],
                tables.settings(step, rate),
                weight_decays=[case.weight_decay],
            )
    return state


def settled(case, state, step, native=True):
    """Settles a table after a step, and returns its rows."""
    now = tables.settings(step, case.learning_rate)
    with tables.native_or_fallback_ops(native):
        settle_rows(case.rule, [state], now, [case.weight_decay], wake=False)
    return state.table.numpy()


def check(case, stream, native=True):
    rows = settled(case, train(case, stream, native), stream.num_steps + NUM_LAST_STEPS, native)
    stream.assert_conserved(rows, case.dense(stream, constant(case, stream)))


def constant(case, stream):
    return [case.learning_rate] * (stream.num_steps + NUM_LAST_STEPS)


@pytest.mark.parametrize("name", CASES)
def test_after_settling_a_row_has_moved_as_far_as_a_dense_optimizers(name):
    check(CASES[name], gap_stream(2_200))


@pytest.mark.parametrize("num_steps", [1, 2, 3, 12, 40])
@pytest.mark.parametrize("name", CASES)
def test_in_the_first_steps_where_the_bias_is_largest_too(name, num_steps):
    check(CASES[name], gap_stream(num_steps, gaps=(0, 1, 2, 5, 20)))


@pytest.mark.parametrize("size", [1e-3, 1e-2, 1e-1])
@pytest.mark.parametrize("name", ["adam_epsilon", "amsgrad_epsilon", "rmsprop_centered_momentum"])
def test_with_gradients_around_epsilon_and_below_too(name, size):
    check(CASES[name], gap_stream(1_100, size=size))


@pytest.mark.parametrize("name", CASES)
def test_without_native_ops_too(name):
    check(CASES[name], gap_stream(40, gaps=(0, 1, 2, 5, 20)), native=False)


@pytest.mark.parametrize(
    "name, native", in_turn([name for name in CASES if not CASES[name].weight_decay], [True, False])
)
def test_before_settling_only_rows_touched_in_two_steps_running_lack_their_tail(name, native):
    case, stream = CASES[name], gap_stream(60, gaps=(0, 1, 2, 5, 20))
    state = train(case, stream, native)
    rows = state.table.numpy()
    dense = case.dense(stream, constant(case, stream))
    moved = np.linalg.norm(dense - stream.values, axis=1)
    lacking = np.linalg.norm(dense - rows, axis=1) > TOLERANCE * moved
    # The last touch of a row and the step before; nothing comes before step 1.
    last = stream.num_steps - np.argmax(stream.touches[::-1], axis=0)
    before = np.concatenate([np.ones([1, stream.num_rows], bool), stream.touches])
    runs = before[last - 1, np.arange(stream.num_rows)]
    assert runs.any() and not runs.all()
    moves = case.rule.moves_when_missed
    assert not (lacking & ~runs).any()
    assert (lacking & runs).any() == moves
    # And that is all that settling gives them.
    after = settled(case, state, stream.num_steps + NUM_LAST_STEPS, native)
    same = (rows == after).all(axis=1)
    np.testing.assert_array_equal(same, ~runs if moves else True)


class FloatAdam:
    """Keras's Adam on a dense gradient, operation by operation in float32.

    But the correction of the bias is computed in float64, where Keras has a power in float32.
    """

    def __init__(self, rule, shape):
        self.rule = rule
        self.m, self.v, self.v_max = np.zeros([3, *shape], np.float32)

    def update(self, rows, grads, rate, step):
        rule, f = self.rule, np.float32
        self.m += (grads - self.m) * f(1 - rule.beta_1)
        self.v += (grads * grads - self.v) * f(1 - rule.beta_2)
        self.v_max = np.maximum(self.v_max, self.v)
        alpha = float(f(rate)) * np.sqrt(1 - rule.beta_2**step) / (1 - rule.beta_1**step)
        root = np.sqrt(self.v_max if rule.amsgrad else self.v)
        return rows - self.m * f(alpha) / (root + f(rule.epsilon))


@pytest.mark.parametrize("native", [True, False], ids=["native", "fallback"])
@pytest.mark.parametrize("name", CASES)
def test_a_row_touched_in_every_step_is_keras_dense_update_bit_for_bit(name, native):
    case, num_rows, num_steps = CASES[name], 9, 100 if native else 20
    is_adam = case.reference == "adam"
    random, rate = np.random.default_rng(0), case.learning_rate
    values = random.normal(size=[num_rows, DIM]).astype(np.float32)
    # The last row misses most steps; which changes no other.
    state = tables.new_state(case.rule, values)
    optimizer, variable = case.optimizer(), tf.Variable(values[:-1])
    ours = FloatAdam(case.rule, [num_rows - 1, DIM]) if is_adam else None
    expected = values[:-1]
    for step in range(1, num_steps + 1):
        grads = random.normal(size=[num_rows, DIM]).astype(np.float32)
        optimizer.apply_gradients([(tf.constant(grads[:-1]), variable)])
        if is_adam:
            decay = np.float32(case.weight_decay)
            decayed = expected - expected * decay * np.float32(rate)
            expected = ours.update(decayed if decay else expected, grads[:-1], rate, step)
        ids = random.permutation(num_rows - (step % 7 > 0))
        with tables.native_or_fallback_ops(native):
            apply_rows(
                case.rule,
                [state],
                [tables.slices(ids, grads[ids])],
                tables.settings(step, rate),
                weight_decays=[case.weight_decay],
            )
    rows = state.table.numpy()[:-1]
    # Two roundings of a step may differ: of its correction for the bias, and of its root.
    bound = tables.EPSILON * np.sqrt(num_steps) * np.abs(values).max()
    np.testing.assert_allclose(rows, variable.numpy(), rtol=0, atol=bound)
    if is_adam:
        np.testing.assert_array_equal(rows, expected)
    elif IS_KERAS_3 or case.reference != "rmsprop":  # tf_keras multiplies by 1 / sqrt(v)
        np.testing.assert_array_equal(rows, variable.numpy())


# The learning rate of each is `rate` at its largest.
SCHEDULES = {
    "exponential": lambda rate: schedules.ExponentialDecay(rate, 1_000, 0.5),
    "warm_up": lambda rate: schedules.PolynomialDecay(rate / 500, 500, rate),
    "piecewise": lambda rate: schedules.PiecewiseConstantDecay(
        [500, 1_000], [rate, rate / 10, rate / 100]
    ),
}


def check_schedule(name, schedule, patterns=None):
    """The same through the optimizer, in one function of all steps."""
    # A row that step 1 touches has missed none.
    case, stream = CASES[name], gap_stream(1_500, first_step=3)
    schedule = SCHEDULES[schedule](case.learning_rate)
    all_steps = tf.range(stream.num_steps + NUM_LAST_STEPS)
    rates = tf.map_fn(schedule, all_steps, fn_output_signature=tf.float32).numpy().tolist()

    layer = embedding_of(stream.values)
    optimizer = SlipstreamOptimizer(case.optimizer(schedule))
    optimizer.build([layer.embeddings])
    table_shape = tf.constant([stream.num_rows, DIM])

    @tf.function(autograph=False)
    def train(ids, grads, ends):
        def step(number):
            one = slice(ends[number], ends[number + 1])
            gradient = tf.IndexedSlices(grads[one], ids[one], table_shape)
            optimizer.apply_gradients([(gradient, layer.embeddings)])
            return [number + 1]

        tf.while_loop(lambda number: number < stream.num_steps, step, [0], parallel_iterations=1)

    _, ids = np.nonzero(stream.touches)
    grads = np.concatenate([grads for _, _, grads in stream.steps()])
    ends = np.cumsum([0, *stream.touches.sum(axis=1)])
    train(tf.constant(ids), tf.constant(grads), tf.constant(ends))
    assert int(optimizer.iterations) == stream.num_steps
    optimizer.iterations.assign_add(NUM_LAST_STEPS)
    optimizer.settle()
    dense = case.dense(stream, rates)
    stream.assert_conserved(np.asarray(layer.embeddings), dense, patterns)


@pytest.mark.parametrize(
    "name, schedule", in_turn(["momentum", "nesterov", "rmsprop_momentum"], SCHEDULES)
)
def test_under_a_schedule_a_row_has_moved_as_far_too(name, schedule):
    check_schedule(name, schedule)


@pytest.mark.parametrize("name, schedule", [("adam", "exponential"), ("amsgrad", "warm_up")])
def test_under_a_smooth_schedule_rows_that_always_miss_steps_have_under_adam(name, schedule):
    check_schedule(name, schedule, {*GAPS, "rare"})


TAIL_OF_ANOTHER_RATE = (
    "A row that was touched in two steps running catches up with the learning rate of its next "
    "touch, and not with that of the steps it missed; a jump of the rate within a tail is seen too "
    "late or too early."
)
DECAY_OF_ANOTHER_RATE = "Weight decay of missed steps has the learning rate of the touch."


@pytest.mark.parametrize(
    "name, schedule",
    [
        pytest.param(*case, marks=pytest.mark.xfail(reason=reason, strict=True))
        for reason, names in (
            (TAIL_OF_ANOTHER_RATE, ["amsgrad", "adam", "adam"]),
            (DECAY_OF_ANOTHER_RATE, ["adamw", "momentum_decay", "sgd_decay"]),
        )
        for case in in_turn(names, SCHEDULES)
    ],
)
def test_under_any_schedule_every_row_has(name, schedule):
    check_schedule(name, schedule)


@pytest.mark.parametrize("name, native", in_turn(CASES, [True, False]))
def test_where_the_counter_of_steps_is_set_back_a_row_still_trains(name, native):
    case, rule = CASES[name], CASES[name].rule
    random, rate = np.random.default_rng(0), case.learning_rate
    state = tables.new_state(rule, random.normal(size=[4, DIM]))
    all_ids = {0: [0, 1, 2, 3], 1: [0], 2: [0, 1], 3: [0, 2]}
    largest = 0.0
    with tables.native_or_fallback_ops(native):
        for step in [*range(40, 60), *range(1, 30), 5, 5, 4, 2**31 + 7, 1, 2, 3]:
            ids = np.array(all_ids[step % 4])
            before = state.table.numpy()
            grads = random.normal(size=[len(ids), DIM]).astype(np.float32)
            apply_rows(
                rule,
                [state],
                [tables.slices(ids, grads)],
                tables.settings(step, rate),
                weight_decays=[case.weight_decay],
            )
            after = state.table.numpy()
            assert np.isfinite(after).all() and (after[ids] != before[ids]).any(axis=1).all()
            largest = max(largest, np.abs(after - before).max())
            settled(case, state, step, native)
            assert np.isfinite(state.table.numpy()).all()
    # No step moves a row by more than some gradients and their tails.
    assert largest < 100 * rate
