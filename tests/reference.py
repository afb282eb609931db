"""The oracle of the tests: one training step of an embedding table, in plain NumPy.

Float64 and row by row, so that every line can be held against its formula; it imports
nothing of the product. The formulas are those of Keras 3, except `row_wise_adagrad`, which
Keras lacks. What a row that misses steps is owed is summed step by step, where the product has
closed forms: docs/reference/rare_rows.md. A new rule is a dataclass of its hyperparameters with the
methods of `Rule`, entered in `RULES`.
"""

import dataclasses
import math

import numpy as np


def summed_rows(ids, grads):
    """Sums the gradient rows of each distinct id, in batch order.

    Args:
        ids: Integers `[num_lookups]`; may repeat.
        grads: Floats `[num_lookups, dim]`.

    Returns:
        `(distinct_ids, sums)`: int64 `[num_rows]` in order of first appearance, and float64
        `[num_rows, dim]`.
    """
    ids = np.asarray(ids, np.int64)
    grads = np.asarray(grads, np.float64)
    sums = {}
    for row_id, grad in zip(ids.tolist(), grads, strict=True):
        sums[row_id] = sums[row_id] + grad if row_id in sums else grad
    distinct_ids = np.array(list(sums), np.int64)
    return distinct_ids, np.array(list(sums.values())).reshape(-1, grads.shape[1])


def global_norm(grads):
    """Returns the l2 norm of all elements of a list of arrays of any shapes."""
    return math.sqrt(sum(np.sum(np.square(grad, dtype=np.float64)) for grad in grads))


def clip_scale_by_norm(norm, clipnorm):
    """Returns the factor that brings a gradient of norm `norm` down to `clipnorm`, at most 1."""
    return 1.0 if norm <= clipnorm else clipnorm / norm


class Rule:
    """Hyperparameters and equation of an update rule, on one row.

    Slots are a dict from Keras's names to `[dim]` arrays, or scalars for a row-wise slot. All
    are always there: one whose option is off (`momentum=0`) does not affect the row.
    """

    def initial_slots(self, dim):
        """Returns the slots of a row that was never touched."""
        raise NotImplementedError

    def has_moments(self):
        """Whether a step with a zero gradient changes a slot."""
        return False

    def can_spend(self):
        """Whether a row that misses steps gets the whole effect of its momentum at once."""
        return False

    def moves_without_gradient(self):
        """Whether a step with a zero gradient may move a row."""
        return self.can_spend()

    def moved_by_nothing(self, slots, learning_rate, first_step, num_steps):
        """Returns what steps with zero gradients move a row by, and the slots after them.

        Args:
            slots: As in `update`.
            learning_rate: Float, of all of them.
            first_step: Number of the first.
            num_steps: How many; None: until nothing moves any more.
        """
        if not self.has_moments():
            return 0.0, slots
        moved, many = 0.0, 3_000
        for number in range(many if num_steps is None else min(num_steps, many)):
            before = moved
            zero = np.zeros_like(next(iter(slots.values())))
            moved, slots = self.update(
                moved + zero, slots, zero, learning_rate, first_step + number
            )
            if num_steps is None and np.abs(moved - before).max(initial=0) < 1e-14:
                break
        return moved, slots

    def update(self, row, slots, grad, learning_rate, step_number):
        """Returns the row `[dim]` and its slots after a step, and changes no argument."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Sgd(Rule):
    """`keras.optimizers.SGD`."""

    momentum: float = 0.0
    nesterov: bool = False

    def initial_slots(self, dim):
        return {"momentum": np.zeros(dim)}

    def has_moments(self):
        return self.momentum > 0

    def moves_without_gradient(self):
        return self.momentum > 0

    def can_spend(self):
        return 0 < self.momentum < 1

    def update(self, row, slots, grad, learning_rate, step_number):
        momentum = self.momentum * slots["momentum"] - learning_rate * grad
        if self.nesterov:
            row = row + self.momentum * momentum - learning_rate * grad
        else:
            row = row + momentum
        return row, {"momentum": momentum}


@dataclasses.dataclass(frozen=True)
class Adagrad(Rule):
    """`keras.optimizers.Adagrad`."""

    initial_accumulator_value: float = 0.1
    epsilon: float = 1e-7

    def initial_slots(self, dim):
        return {"accumulator": np.full(dim, self.initial_accumulator_value)}

    def update(self, row, slots, grad, learning_rate, step_number):
        accumulator = slots["accumulator"] + grad**2
        row = row - learning_rate * grad / np.sqrt(accumulator + self.epsilon)
        return row, {"accumulator": accumulator}


@dataclasses.dataclass(frozen=True)
class RowWiseAdagrad(Rule):
    """Adagrad with one accumulator per row, and epsilon outside the square root."""

    initial_accumulator_value: float = 0.1
    epsilon: float = 1e-7

    def initial_slots(self, dim):
        return {"accumulator": self.initial_accumulator_value}

    def update(self, row, slots, grad, learning_rate, step_number):
        accumulator = slots["accumulator"] + np.mean(grad**2)
        row = row - learning_rate * grad / (np.sqrt(accumulator) + self.epsilon)
        return row, {"accumulator": accumulator}


@dataclasses.dataclass(frozen=True)
class Adam(Rule):
    """`keras.optimizers.Adam`, and with a weight decay `AdamW`."""

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7
    amsgrad: bool = False

    def initial_slots(self, dim):
        return {name: np.zeros(dim) for name in ("momentum", "velocity", "velocity_hat")}

    def has_moments(self):
        return True

    def moves_without_gradient(self):
        return self.beta_1 > 0

    def can_spend(self):
        # Where v decays as fast as m^2, a row would get far ahead of where it is to come to.
        r = self.beta_1 if self.amsgrad else self.beta_1 / math.sqrt(self.beta_2)
        return 0 < r < 1 and r / (1 - r) <= 2 * self.beta_1 / (1 - self.beta_1)

    def update(self, row, slots, grad, learning_rate, step_number):
        momentum = slots["momentum"] + (1 - self.beta_1) * (grad - slots["momentum"])
        velocity = slots["velocity"] + (1 - self.beta_2) * (grad**2 - slots["velocity"])
        velocity_hat = np.maximum(slots["velocity_hat"], velocity)
        # Bias correction with the table's step number, not the row's: Keras has one counter.
        alpha = learning_rate * math.sqrt(1 - self.beta_2**step_number)
        alpha /= 1 - self.beta_1**step_number
        used_velocity = velocity_hat if self.amsgrad else velocity
        row = row - alpha * momentum / (np.sqrt(used_velocity) + self.epsilon)
        return row, {"momentum": momentum, "velocity": velocity, "velocity_hat": velocity_hat}


@dataclasses.dataclass(frozen=True)
class RmsProp(Rule):
    """`keras.optimizers.RMSprop`."""

    rho: float = 0.9
    momentum: float = 0.0
    epsilon: float = 1e-7
    centered: bool = False

    def initial_slots(self, dim):
        return {name: np.zeros(dim) for name in ("velocity", "momentum", "average_gradient")}

    def has_moments(self):
        return True

    def can_spend(self):
        return 0 < self.momentum < 1

    def update(self, row, slots, grad, learning_rate, step_number):
        velocity = self.rho * slots["velocity"] + (1 - self.rho) * grad**2
        average = self.rho * slots["average_gradient"] + (1 - self.rho) * grad
        variance = velocity - average**2 if self.centered else velocity
        increment = learning_rate * grad / np.sqrt(variance + self.epsilon)
        momentum = self.momentum * slots["momentum"] + increment
        slots = {"velocity": velocity, "momentum": momentum, "average_gradient": average}
        return row - momentum, slots


@dataclasses.dataclass(frozen=True)
class Ftrl(Rule):
    """`keras.optimizers.Ftrl`."""

    learning_rate_power: float = -0.5
    initial_accumulator_value: float = 0.1
    l1_regularization_strength: float = 0.0
    l2_regularization_strength: float = 0.0
    l2_shrinkage_regularization_strength: float = 0.0
    beta: float = 0.0

    def initial_slots(self, dim):
        return {
            "accumulator": np.full(dim, self.initial_accumulator_value),
            "linear": np.zeros(dim),
        }

    def update(self, row, slots, grad, learning_rate, step_number):
        power = -self.learning_rate_power
        l1 = self.l1_regularization_strength
        l2 = self.l2_regularization_strength + self.beta / (2 * learning_rate)
        accumulator = slots["accumulator"] + grad**2  # without the shrinkage, as in Keras
        sigma = (accumulator**power - slots["accumulator"] ** power) / learning_rate
        shrunk_grad = grad + 2 * self.l2_shrinkage_regularization_strength * row
        linear = slots["linear"] + shrunk_grad - sigma * row
        quadratic = accumulator**power / learning_rate + 2 * l2
        row = (np.clip(linear, -l1, l1) - linear) / quadratic
        return row, {"accumulator": accumulator, "linear": linear}


RULES = {
    "sgd": Sgd,
    "adagrad": Adagrad,
    "row_wise_adagrad": RowWiseAdagrad,
    "adam": Adam,
    "adamw": Adam,
    "rmsprop": RmsProp,
    "ftrl": Ftrl,
}


class ReferenceTable:
    """An embedding table with its optimizer state, trained one step at a time.

    A row that a step does not touch keeps its values and slots exactly. When it is next touched it
    first gets what steps with zero gradients would have done to it; and where it missed a step, it
    gets at once what they will do to it, which is taken back when it is touched again. A skipped
    update does not touch its row.

    ```python
    table = ReferenceTable(np.zeros([3, 2]), "sgd", momentum=0.9)
    table.step(ids=[2, 0, 2], grads=np.ones([3, 2]), learning_rate=0.5)
    table.values  # [[-0.5, -0.5], [0, 0], [-1, -1]]
    ```

    Args:
        values: Floats `[num_rows, dim]`, copied.
        rule: A key of `RULES`.
        weight_decay: Share of a row, times the learning rate, that each step takes off. `None`
            is 0, but for `"adamw"` Keras's 0.004.
        clipvalue: Bound on each element of a summed and scaled gradient, or `None`.
        wake_steps: Integers `[num_rows]`, or `None` for no stale row: a row is stale in the
            steps before its wake step, and its updates are skipped. May be changed between
            steps.
        **hyperparameters: Fields of the rule; what is left out has Keras's default.

    Attributes:
        values: Float64 `[num_rows, dim]`.
        slots: Dict from Keras's slot names to float64 `[num_rows, dim]`, or `[num_rows]` for
            a row-wise slot.
        step_number: Number of steps taken; the first step is step 1.
        last_step: Int64 `[num_rows]`, the step in which a row was last touched, 0 if never.
        is_spent: Bool `[num_rows]`, whether it got then what later steps would do.
        wake_steps: Int64 `[num_rows]`.
        num_lookups, num_skipped_lookups: Ids read since construction.
        num_row_updates, num_skipped_row_updates: Distinct rows, summed over the steps; the
            skipped ones are part of `num_row_updates`.
    """

    def __init__(
        self, values, rule, *, weight_decay=None, clipvalue=None, wake_steps=None, **hyperparameters
    ):
        self.values = np.array(values, np.float64)
        num_rows, dim = self.values.shape
        self.rule = RULES[rule](**hyperparameters)
        self.slots = {
            name: np.array([slot] * num_rows, np.float64)
            for name, slot in self.rule.initial_slots(dim).items()
        }
        if weight_decay is None:
            weight_decay = 0.004 if rule == "adamw" else 0.0
        self.weight_decay = weight_decay
        self.clipvalue = clipvalue
        self.wake_steps = np.array([0] * num_rows if wake_steps is None else wake_steps, np.int64)
        self.last_step = np.zeros(num_rows, np.int64)
        self.is_spent = np.zeros(num_rows, bool)
        self.step_number = 0
        self.num_lookups = 0
        self.num_skipped_lookups = 0
        self.num_row_updates = 0
        self.num_skipped_row_updates = 0

    def step(self, ids, grads, learning_rate, gradient_scale=1.0):
        """Updates every row that is looked up and not stale, once.

        Args:
            ids: Integers `[num_lookups]`; may repeat.
            grads: Floats `[num_lookups, dim]`.
            learning_rate: Float.
            gradient_scale: Float that multiplies the summed gradients, before `clipvalue`.

        Raises:
            ValueError: If an id is not in `[0, num_rows)`; nothing has changed then.
        """
        ids = np.asarray(ids, np.int64)
        # NumPy would read a negative id from the end of the table.
        if np.any((ids < 0) | (ids >= len(self.values))):
            raise ValueError(f"Expected ids in [0, {len(self.values)}), received {ids}.")
        self.step_number += 1
        for row_id, grad in zip(*summed_rows(ids, grads), strict=True):
            num_lookups = np.count_nonzero(ids == row_id)
            self.num_lookups += num_lookups
            self.num_row_updates += 1
            if self.step_number < self.wake_steps[row_id]:
                self.num_skipped_lookups += num_lookups
                self.num_skipped_row_updates += 1
            else:
                self._update_row(row_id, grad * gradient_scale, float(learning_rate))

    def settle(self, learning_rate):
        """Gives every row what the steps since its last one would have done to it.

        A row that they would not move, or that had it all at its touch, keeps its slots as well.
        """
        step = max(1, self.step_number)
        for row_id in np.flatnonzero(self.last_step):
            num_missed = max(0, step - self.last_step[row_id])
            moves = self.rule.moves_without_gradient() and not self.is_spent[row_id]
            if num_missed == 0 or not (moves or self.weight_decay):
                continue
            row, slots = self._after_missed_steps(row_id, num_missed, learning_rate, step + 1)
            if self.is_spent[row_id]:
                row = self.values[row_id]
            self._store(row_id, self._decayed(row, num_missed, learning_rate), slots)

    def _update_row(self, row_id, grad, learning_rate):
        if self.clipvalue is not None:
            grad = np.clip(grad, -self.clipvalue, self.clipvalue)
        self._touch(
            row_id,
            1,
            learning_rate,
            lambda *row: self.rule.update(*row, grad, learning_rate, self.step_number),
        )

    def _touch(self, row_id, num_batches, learning_rate, update):
        """Has `update(row, slots)` do what this step's batch, or the last ones, do to a row."""
        num_steps, step = self.step_number - self.last_step[row_id], max(1, self.step_number)
        num_missed = max(0, num_steps - num_batches)
        row, slots = self._after_missed_steps(row_id, num_missed, learning_rate, step)
        row = self._decayed(row, num_missed + num_batches, learning_rate)
        row, slots = update(row, slots)
        is_rare = num_missed > 0 or num_batches > 1
        self.is_spent[row_id] = is_rare and self.rule.can_spend()
        if self.is_spent[row_id]:
            row = row + self._tail(slots, learning_rate, step)
        self._store(row_id, row, slots)

    def _after_missed_steps(self, row_id, num_missed, learning_rate, next_step):
        """Returns a row and its slots after so many steps before the next, without its tail."""
        row = self.values[row_id]
        slots = {name: slot[row_id] for name, slot in self.slots.items()}
        moved, slots = self.rule.moved_by_nothing(
            slots, learning_rate, next_step - num_missed, num_missed
        )
        if self.is_spent[row_id]:
            return row - self._tail(slots, learning_rate, next_step - 1), slots
        return row + moved, slots

    def _tail(self, slots, learning_rate, step):
        """Returns what the steps after one will do to a row that no gradient comes for."""
        return self.rule.moved_by_nothing(slots, learning_rate, step + 1, None)[0]

    def _decayed(self, row, num_steps, learning_rate):
        return row * (1 - learning_rate * self.weight_decay) ** num_steps

    def _store(self, row_id, row, slots):
        self.values[row_id] = row
        for name, slot in slots.items():
            self.slots[name][row_id] = slot
        self.last_step[row_id] = max(1, self.step_number)
