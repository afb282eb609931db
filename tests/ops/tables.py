"""Tables for the tests of ops: building them, training them, and comparing them bit by bit.

An update rule is here a `RuleCase`: the product's rule beside the reference's of the same
hyperparameters. A training is a `Plan`, which both can run.
"""

import contextlib
import dataclasses

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from tests.reference import ReferenceTable
from tf_slipstream import StalenessPolicy, update_rules
from tf_slipstream.ops import StepSettings, _library
from tf_slipstream.ops.apply_rows import apply_rows
from tf_slipstream.ops.settle_rows import settle_rows
from tf_slipstream.state.schema import COUNTERS, POLICY_STATE, POOL_INTS, ROW_COUNTS
from tf_slipstream.state.table import TableState

EPSILON = float(np.finfo(np.float32).eps)

POLICY_VARIABLES = ("row_states", "pool_ints", "pool_floats", "policy_state")

# One per step, again from the start when they run out. Too much alike to wake a row.
LEARNING_RATES = (0.125, 0.1328125, 0.1171875)


@dataclasses.dataclass(frozen=True)
class RuleCase:
    """A rule of the product and, by name and options, the same of the reference."""

    rule: update_rules.UpdateRule
    reference: str
    options: dict

    def reference_table(self, values, **options):
        """Returns a `ReferenceTable` with this rule and its own options."""
        return ReferenceTable(values, self.reference, **options, **self.options)


def _sgd(**options):
    if not options:
        return RuleCase(update_rules.Sgd(), "sgd", {})
    rule = update_rules.Momentum(options["momentum"], options.get("nesterov", False))
    return RuleCase(rule, "sgd", options)


# Hyperparameters are powers of two and small multiples of them, exact in float32: both sides then
# compute with the same ones. Epsilon is large enough to be seen; but Adam's, beside which tails are
# known to a thousandth only (docs/reference/rare_rows.md).
def _adagrad(cls, name):
    return RuleCase(cls(0.25, 0.125), name, {"initial_accumulator_value": 0.25, "epsilon": 0.125})


def _adam(amsgrad):
    options = {"beta_1": 0.75, "beta_2": 0.875, "epsilon": 2.0**-26, "amsgrad": amsgrad}
    return RuleCase(update_rules.Adam(**options), "adam", options)


def _rms_prop(momentum=0.0, centered=False):
    options = {"rho": 0.75, "momentum": momentum, "epsilon": 0.125, "centered": centered}
    return RuleCase(update_rules.RmsProp(**options), "rmsprop", options)


def _ftrl(learning_rate_power=-0.5, l1=0.0, l2=0.0, l2_shrinkage=0.0, beta=0.0):
    options = {
        "learning_rate_power": learning_rate_power,
        "initial_accumulator_value": 0.25,
        "l1_regularization_strength": l1,
        "l2_regularization_strength": l2,
        "l2_shrinkage_regularization_strength": l2_shrinkage,
        "beta": beta,
    }
    rule = update_rules.Ftrl(learning_rate_power, 0.25, l1, l2, l2_shrinkage, beta)
    return RuleCase(rule, "ftrl", options)


RULE_CASES = {
    "sgd": _sgd(),
    "momentum": _sgd(momentum=0.75),
    "nesterov": _sgd(momentum=0.75, nesterov=True),
    "adagrad": _adagrad(update_rules.Adagrad, "adagrad"),
    "row_wise_adagrad": _adagrad(update_rules.RowWiseAdagrad, "row_wise_adagrad"),
    "adam": _adam(amsgrad=False),
    "amsgrad": _adam(amsgrad=True),
    "rmsprop": _rms_prop(),
    "rmsprop_centered": _rms_prop(centered=True),
    "rmsprop_momentum": _rms_prop(momentum=0.5),
    "rmsprop_centered_momentum": _rms_prop(momentum=0.5, centered=True),
    "ftrl": _ftrl(),
    "ftrl_other_power": _ftrl(learning_rate_power=-0.75),
    "ftrl_l1": _ftrl(l1=0.25),
    "ftrl_l2_beta": _ftrl(l2=0.5, beta=0.25),
    "ftrl_all": _ftrl(learning_rate_power=-0.75, l1=0.125, l2=0.25, l2_shrinkage=0.25, beta=0.5),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """A training of one table.

    Attributes:
        num_rows, dim: The table's shape.
        batches: One list of ids per step.
        index_dtype: Of the ids.
        wake_steps: One per row, or None where there is no policy. A row is skipped in the steps
            below its own, and its gradient is NaN there.
        weight_decay, clip_value, grad_scale: As in `apply_rows`.
        seed: Of values and gradients.
        settles: Steps after which the table is settled.
    """

    num_rows: int
    dim: int
    batches: list
    index_dtype: str = "int64"
    wake_steps: list | None = None
    weight_decay: float = 0.0
    clip_value: float = 0.0
    grad_scale: float = 1.0
    seed: int = 0
    settles: tuple = ()

    def values(self):
        """Returns the table before training, float32 `[num_rows, dim]`."""
        return self._uniform([self.num_rows, self.dim], 0)

    def steps(self):
        """Yields step number, ids `[num_lookups]`, gradients `[num_lookups, dim]`, rate."""
        for step, ids in enumerate(self.batches, start=1):
            ids = np.array(ids, self.index_dtype)
            grads = self._uniform([len(ids), self.dim], step)
            if self.wake_steps is not None:
                grads[step < np.array(self.wake_steps)[ids]] = np.nan
            yield step, ids, grads, LEARNING_RATES[step % len(LEARNING_RATES)]

    def live_ids(self, step):
        """Returns the set of ids that a step updates."""
        ids = set(self.batches[step - 1])
        return {i for i in ids if self.wake_steps is None or step >= self.wake_steps[i]}

    def _uniform(self, shape, stream):
        random = np.random.default_rng([self.seed, stream])
        return random.uniform(-1, 1, shape).astype(np.float32)


# One, odd, and around the widths of vector registers: 4, 8, 16 floats, and two of the last.
DIMS = (1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33)


@st.composite
def plans(draw):
    """Small trainings: repeated and unsorted ids, missed steps, stale rows, empty batches."""
    num_rows = draw(st.integers(1, 9))
    ids = st.integers(0, num_rows - 1)
    batches = draw(st.lists(st.lists(ids, max_size=12), min_size=1, max_size=5))
    wake_steps = st.lists(st.integers(0, 6), min_size=num_rows, max_size=num_rows)
    return Plan(
        num_rows,
        draw(st.sampled_from(DIMS)),
        # Every step but an empty one also reads the first or the last row.
        [batch and [*batch, draw(st.sampled_from([0, num_rows - 1]))] for batch in batches],
        index_dtype=draw(st.sampled_from(["int32", "int64"])),
        wake_steps=draw(st.none() | wake_steps),
        weight_decay=draw(st.sampled_from([0.0, 0.125])),
        clip_value=draw(st.sampled_from([0.0, 0.5])),
        grad_scale=draw(st.sampled_from([1.0, 0.75])),
        seed=draw(st.integers(0, 99)),
    )


def new_state(rule, values, name="table", wake_steps=None):
    """Returns the `TableState` of a table with these values that was never trained."""
    values = np.asarray(values, np.float32)
    num_rows, dim = values.shape
    return TableState(
        name=name,
        table=tf.Variable(values),
        slots=tuple(
            tf.Variable(tf.fill([num_rows, 1 if slot.per_row else dim], slot.initial_value))
            for slot in rule.slots
        ),
        last_steps=tf.Variable(tf.zeros([num_rows], tf.int32)),
        changed_rows=tf.Variable(tf.zeros([-(-num_rows // 32)], tf.int32)),
        counters=tf.Variable(tf.zeros([len(COUNTERS)], tf.int64)),
        **({} if wake_steps is None else asleep(wake_steps, dim)),
    )


def asleep(wake_steps, dim):
    """Returns the fields of a `TableState` whose rows are skipped until they wake for good."""
    num_rows = len(wake_steps)
    entries = np.zeros([num_rows, len(POOL_INTS)], np.int64)
    entries[:, POOL_INTS.index("row")] = np.arange(num_rows)
    entries[:, POOL_INTS.index("wake_step")] = wake_steps
    entries[:, POOL_INTS.index("period")] = 1
    entries[:, POOL_INTS.index("is_skipped")] = 1
    state = dict.fromkeys(POLICY_STATE, 0.0) | {"strictness": 1.0, "num_entries": num_rows}
    return {
        # Never judged, so never put to sleep again.
        "policy": StalenessPolicy(on_stale="skip", probe=1 << 40, refresh_every=0),
        "row_states": tf.Variable(-1 - np.arange(num_rows, dtype=np.int32)),
        "pool_ints": tf.Variable(entries),
        "pool_floats": tf.Variable(np.zeros([num_rows, 2 * dim + 1], np.float32)),
        "policy_state": tf.Variable(np.array([*state.values()], np.float64)),
    }


def sleep(state, row, wake_step):
    """Puts a row of such a state to sleep."""
    column = POOL_INTS.index("wake_step")
    state.pool_ints[-1 - int(state.row_states[row]), column].assign(wake_step)


def slices(ids, grads):
    return tf.IndexedSlices(tf.convert_to_tensor(grads), tf.convert_to_tensor(ids))


def settings(step=1, learning_rate=1.0, clip_value=0.0):
    return StepSettings(
        tf.constant(step, tf.int64), tf.constant(learning_rate), clip_value=clip_value
    )


def native_or_fallback_ops(native):
    """Returns a context that runs ops natively, or on plain TensorFlow ops."""
    return contextlib.nullcontext() if native else _library.fallback()


def train(rule, plan, *, native, in_function=False):
    """Trains a new table as planned.

    Returns:
        Its `arrays_of`, before the first step and after each, and what follows it.
    """
    state = new_state(rule, plan.values(), wake_steps=plan.wake_steps)

    def step_once(ids, grads, step, learning_rate):
        apply_rows(
            rule,
            [state],
            [tf.IndexedSlices(grads, ids)],
            StepSettings(step, learning_rate, clip_value=plan.clip_value),
            [tf.constant(plan.grad_scale)],
            [plan.weight_decay],
        )

    if in_function:
        signature = [
            tf.TensorSpec([None], plan.index_dtype),
            tf.TensorSpec([None, plan.dim]),
            tf.TensorSpec([], tf.int64),
            tf.TensorSpec([]),
        ]
        step_once = tf.function(step_once, input_signature=signature)
    history = [arrays_of(state)]
    with native_or_fallback_ops(native):
        for step, ids, grads, learning_rate in plan.steps():
            step_once(
                tf.constant(ids),
                tf.constant(grads),
                tf.constant(step, tf.int64),
                tf.constant(learning_rate),
            )
            if step in plan.settles:
                now = settings(step, learning_rate)
                settle_rows(rule, [state], now, [plan.weight_decay], wake=False)
            history.append(arrays_of(state))
    return history


def arrays_of(state):
    """Returns copies of all that a step may change, as a dict of arrays."""
    variables = {
        "table": state.table,
        "changed_rows": state.changed_rows,
        "counters": state.counters,
    }
    variables |= {f"slot {i}": slot for i, slot in enumerate(state.slots)}
    if state.last_steps is not None:
        variables["last_steps"] = state.last_steps
    if state.policy is not None:
        variables |= {name: getattr(state, name) for name in POLICY_VARIABLES}
    return {name: np.array(variable.numpy()) for name, variable in variables.items()}


def assert_same_bits(arrays, expected):
    """Fails unless two dicts of arrays are equal to the bit, signs of zeros and NaNs included."""
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        assert array.dtype == expected[name].dtype and array.shape == expected[name].shape, name
        assert array.tobytes() == expected[name].tobytes(), f"{name} changed"


def without_rows(arrays, ids):
    """Returns the arrays that have a row per row of the table, without the rows of some ids."""
    return {
        name: np.delete(array, sorted(ids), axis=0)
        for name, array in arrays.items()
        if name not in ("changed_rows", "counters", *POLICY_VARIABLES)
    }


# What one step may round on the way from a row to the next, in units of half an epsilon of the
# largest number around: no rule has more operations than that, and each rounds once.
NUM_ROUNDINGS = 32


def rounding_bound(num_steps, num_repeats, largest):
    """Returns how far float32 can be from exact arithmetic after some steps.

    Args:
        num_steps: Number of steps.
        num_repeats: How often an id comes in a step, at most; adding them up rounds as often.
        largest: Bound on every number that the steps add up.
    """
    return EPSILON / 2 * num_steps * (NUM_ROUNDINGS + num_repeats) * max(1.0, largest)


def assert_matches_reference(case, plan, arrays):
    """Fails unless the arrays after the plan's last step are those of the reference."""
    reference = case.reference_table(
        plan.values(),
        weight_decay=plan.weight_decay,
        clipvalue=plan.clip_value or None,
        wake_steps=plan.wake_steps,
    )
    largest, num_repeats = 0.0, 0
    for step, ids, grads, learning_rate in plan.steps():
        reference.step(ids, grads, learning_rate, plan.grad_scale)
        if step in plan.settles:
            reference.settle(learning_rate)
        num_repeats = max([num_repeats, *np.bincount(ids)])
        seen = [reference.values, *reference.slots.values()]
        # Gradients are below 1, so a sum of them is below the number of its terms.
        largest = max(largest, num_repeats, *(np.abs(array).max() for array in seen))
    tolerance = rounding_bound(len(plan.batches) + len(plan.settles), num_repeats, largest)
    np.testing.assert_allclose(arrays["table"], reference.values, 0, tolerance)
    for i, slot in enumerate(case.rule.slots):
        expected = reference.slots[slot.name].reshape(arrays[f"slot {i}"].shape)
        np.testing.assert_allclose(arrays[f"slot {i}"], expected, 0, tolerance, err_msg=slot.name)
    np.testing.assert_array_equal(arrays["last_steps"], clocks(reference))
    marked = changed(arrays["changed_rows"], plan.num_rows)
    np.testing.assert_array_equal(marked, reference.last_step > 0)
    counts = {name: getattr(reference, name, 0) for name in ROW_COUNTS}
    np.testing.assert_array_equal(arrays["counters"], counters(**counts))


def changed(words, num_rows):
    """Returns bool `[num_rows]` from the bits of `TableState.changed_rows`."""
    bits = np.unpackbits(words.astype("<i4").view(np.uint8), bitorder="little")
    return bits[:num_rows].astype(bool)


def counters(**counts):
    """Returns a table's counters, int64 `[len(COUNTERS)]`, given those that are not 0."""
    return np.array([counts.get(name, 0) for name in COUNTERS], np.int64)


def clocks(reference):
    """Returns `last_steps` int32 `[num_rows]` of a reference table, of steps below 2^31."""
    return np.where(reference.is_spent, reference.last_step - 2**31, reference.last_step)


def bad_id_message(table, row_id, position, num_rows):
    """Returns a pattern for the error: one line, or from the fallback pieces with marks between."""
    between = r"[^\d-]*"  # so that numbers match as a whole
    return between.join(
        [
            rf"table \\?'{table}\\?': id",
            str(row_id),
            "at position",
            str(position),
            rf"is not in \[0, {num_rows}\)\. No row was changed",
        ]
    )


def bad_gradient_message(table, row_id):
    """Like `bad_id_message`."""
    row = rf"(?s)table \\?'{table}\\?': the gradient of row[^\d-]*{row_id}\b"
    return row + r".*is NaN or infinite\. No row was changed"
