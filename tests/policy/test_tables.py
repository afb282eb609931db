"""Which table has which policy, and that tables of one optimizer do not mix."""

import numpy as np
import pytest

from tests.models import embedding_of, slices
from tests.policy.training import Product, Stream, inner_of, policies
from tf_slipstream import SlipstreamOptimizer, StalenessPolicy

ALWAYS = {"drift_metric": "l2", "threshold": 1e30}
DEFER, SKIP = policies(**ALWAYS), policies(on_stale="skip", **ALWAYS)
STREAM = Stream(num_steps=40)


def train_together(layers, policy, name="adam", streams=None):
    """Trains layers under one optimizer and returns it."""
    optimizer = SlipstreamOptimizer(inner_of(name), policy=policy)
    streams = streams or [STREAM] * len(layers)
    tables = [layer.embeddings for layer in layers]

    def step(grads):
        optimizer.apply_gradients(zip(grads, tables))

    for batches in zip(*(stream.steps() for stream in streams), strict=True):
        step([slices(ids, grads, len(s.shares)) for (ids, grads, _), s in zip(batches, streams)])
    return optimizer


def layer_of(stream=STREAM, **kwargs):
    return embedding_of(stream.values().astype(np.float32), **kwargs)


@pytest.mark.parametrize("policy", [DEFER, SKIP, None], ids=["defer", "skip", "none"])
def test_a_layers_policy_comes_before_the_optimizers(policy):
    choices = {"other": "default", "never": None, "defer": DEFER, "skip": SKIP}
    layers = [layer_of(name=name, policy=choice) for name, choice in choices.items()]
    stats = train_together(layers, policy).skip_stats()
    kinds = {
        name: (one.num_deferred_lookups > 0, one.num_skipped_lookups > 0)
        for name, one in stats.items()
    }
    expected = {"never": (False, False), "defer": (True, False), "skip": (False, True)}
    of_policy = {DEFER: "defer", SKIP: "skip", None: "never"}
    assert kinds == expected | {"other": expected[of_policy[policy]]}
    assert {name: one.num_stale_rows > 0 for name, one in stats.items()} == {
        name: any(kind) for name, kind in kinds.items()
    }
    tables = {layer.name: layer.embeddings.numpy() for layer in layers}
    equal = of_policy[policy]
    np.testing.assert_array_equal(tables["other"], tables[equal])


def test_a_layers_policy_may_be_the_name_of_a_preset():
    layers = [layer_of(name=name, policy=name) for name in ("balanced", "aggressive")]
    optimizer = train_together(layers, "conservative")
    # The 40 steps are few for the one and make rows popular under the other.
    popular = {name: optimizer.tables[name].row_states.numpy() < 0 for name in optimizer.tables}
    assert not popular["balanced"].any() and popular["aggressive"].any()
    for name in ("balanced", "aggressive"):
        preset = getattr(StalenessPolicy, name)()
        assert optimizer.tables[name].policy == preset
        counts = optimizer.tables[name].row_states.numpy()[~popular[name]]
        assert counts.max() < preset.min_updates


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_tables_together_are_what_they_are_alone(name):
    streams = [
        Stream(num_steps=40),
        Stream(dim=9, seed=1, num_steps=40),
        Stream(dim=4, shares=(1.0, 0.5), seed=2, num_steps=40),
    ]
    layer_policies = [DEFER, SKIP, policies(threshold=1.0)]
    layers = [
        layer_of(stream, name=f"table_{number}", policy=policy)
        for number, (stream, policy) in enumerate(zip(streams, layer_policies))
    ]
    optimizer = train_together(layers, None, name, streams)
    for number, (stream, policy) in enumerate(zip(streams, layer_policies)):
        alone = Product(stream.values(), name, policy)
        for ids, grads, _ in stream.steps():
            alone.step(ids, grads)
        state = optimizer.tables[f"table_{number}"]
        for variable, array in alone.arrays().items():
            if not variable.startswith("slot"):
                actual = getattr(state, variable).numpy()
                assert actual.dtype == array.dtype, variable
                assert actual.tobytes() == array.tobytes(), variable


def test_wake_all_and_strictness_are_of_every_table():
    layers = [layer_of(name="a"), layer_of(name="b"), layer_of(name="never", policy=None)]
    optimizer = train_together(layers, DEFER)
    held = [optimizer.tables[name].pool_ints.numpy()[:, 4].sum() for name in "ab"]
    assert min(held) > 0
    optimizer.set_strictness(0.5)
    assert [optimizer.tables[name].policy_state.numpy()[5] for name in "ab"] == [0.5, 0.5]
    stats = optimizer.skip_stats()
    assert stats["a"].drift_threshold == pytest.approx(0.5 * 1e30, rel=1e-6)
    assert stats["never"].drift_threshold == 0
    optimizer.wake_all()
    assert [optimizer.tables[name].pool_ints.numpy()[:, 4].sum() for name in "ab"] == [0, 0]
    assert [one.num_stale_rows for one in optimizer.skip_stats().values()] == [0, 0, 0]


def test_a_table_without_gradient_in_a_step_is_left_alone():
    layers = [layer_of(name="a"), layer_of(name="b")]
    optimizer = train_together(layers, DEFER)
    before = [np.array(variable.numpy()) for variable in _variables(optimizer.tables["b"])]
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply_gradients(
            [(slices([0], np.ones([1, 4]), 6), layers[0].embeddings), (None, layers[1].embeddings)]
        )
    for variable, value in zip(_variables(optimizer.tables["b"]), before):
        np.testing.assert_array_equal(variable.numpy(), value)


def _variables(state):
    return [state.table, *state.slots, state.row_states, state.pool_ints, state.pool_floats]
