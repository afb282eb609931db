"""How the native ops get tables, their policies, and what a step applies to them."""

import dataclasses

import tensorflow as tf

from tf_slipstream.ops.rounding import rounding_seed


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What a step applies alike to all tables.

    Attributes:
        step: int64 scalar tensor, the number of this step (1 in the first).
        learning_rate: float32 scalar tensor.
        tail_rates: Pair of float32 scalar tensors, the learning rates that the momentum of the step
            before and of this one will meet; None: `learning_rate`.
        clip_value: Float bound on each element of a summed gradient, or 0 for none.
    """

    step: tf.Tensor
    learning_rate: tf.Tensor
    tail_rates: tuple | None = None
    clip_value: float = 0.0

    def of_next_step(self):
        """Returns these settings for the step to come; what its own momentum meets is not used."""
        _, after = self.tail_rates or (None, self.learning_rate)
        return dataclasses.replace(self, step=self.step + 1, tail_rates=(after, after))


def table_arguments(rule, states, settings, weight_decays):
    """Returns the native ops' arguments for tables.

    Args:
        rule: The `UpdateRule` of all these tables.
        states: `TableState`s, all on one device.
        settings: `StepSettings`.
        weight_decays: Floats, one per table.
    """
    before, after = settings.tail_rates or (settings.learning_rate, settings.learning_rate)
    return {
        "tables": [state.table.handle for state in states],
        "slots": [slot.handle for state in states for slot in state.slots],
        "last_steps": [s.last_steps.handle for s in states if s.last_steps is not None],
        "changed_rows": [state.changed_rows.handle for state in states],
        "counters": [state.counters.handle for state in states],
        **pool_arguments(states),
        "step": settings.step,
        "learning_rate": settings.learning_rate,
        "tail_rates": tf.stack([before, after]),
        "tails": tf.constant(rule.tails, tf.float32),
        "rule": rule.name,
        "hyperparameters": [*map(repr, rule.hyperparameters)],
        "weight_decays": weight_decays,
        "table_names": [state.name for state in states],
        "rounding_seeds": [rounding_seed(state.name) for state in states],
    }


def pool_arguments(states):
    """Returns the native ops' arguments for the tables that have a policy."""
    places = [place for place, state in enumerate(states) if state.policy is not None]
    states = [states[place] for place in places]
    return {
        "row_states": [state.row_states.handle for state in states],
        "pool_ints": [state.pool_ints.handle for state in states],
        "pool_floats": [state.pool_floats.handle for state in states],
        "policy_states": [state.policy_state.handle for state in states],
        "policy_tables": places,
        "policies": [field for state in states for field in _fields_of(state)],
    }


def _fields_of(state):
    # Not one long string: the cache of eager kernels compares no more than the ends of it.
    numbers = state.policy.numbers(state.correlation)
    return [f"{name}={number!r}" for name, number in numbers.items()]


# Of an op that knows of no policy.
NO_POOLS = pool_arguments([])
