"""Names, configs and policies that the optimizer takes, and an optimizer of the tables' own."""

import json
import re

import numpy as np
import pytest
import tensorflow as tf

from tests.models import (
    assert_all_equal,
    click_data,
    click_model,
    embedding_of,
    fit,
    random_table,
    sleepy,
    slices,
    train_steps,
    values_of,
)
from tf_slipstream import RowWiseAdagrad, SlipstreamOptimizer, StalenessPolicy
from tf_slipstream._compat import IS_KERAS_3, keras
from tf_slipstream.distribute import WorkerCache

optimizers = keras.optimizers
keras_3_only = pytest.mark.skipif(not IS_KERAS_3, reason="tf_keras has no such argument")
tf_keras_only = pytest.mark.skipif(IS_KERAS_3, reason="Keras 3 has no legacy optimizers")


class TestIdentifiers:
    @pytest.mark.parametrize(
        "identifier, cls",
        [
            ("adam", optimizers.Adam),
            ("Adagrad", optimizers.Adagrad),
            (
                {"class_name": "SGD", "config": {"learning_rate": 0.5, "momentum": 0.5}},
                optimizers.SGD,
            ),
            ({"class_name": "RMSprop", "config": {}}, optimizers.RMSprop),
            (optimizers.serialize(optimizers.Ftrl(0.5)), optimizers.Ftrl),
            (keras.saving.serialize_keras_object(RowWiseAdagrad(0.5)), RowWiseAdagrad),
        ],
        ids=lambda value: value.get("class_name", "") if isinstance(value, dict) else None,
    )
    @pytest.mark.parametrize("argument", ["inner", "table_optimizer"])
    def test_a_name_or_a_config_stands_for_an_optimizer(self, argument, identifier, cls):
        before = json.dumps(identifier)
        optimizer = SlipstreamOptimizer(**{"inner": "sgd", argument: identifier})
        found = optimizer.inner_optimizer if argument == "inner" else optimizer.table_optimizer
        assert type(found) is cls
        if isinstance(identifier, dict) and identifier["config"]:
            assert float(found.learning_rate) == 0.5
        assert json.dumps(identifier) == before

    @pytest.mark.parametrize("make", [str, lambda policy: policy], ids=["name", "object"])
    def test_a_policy_is_the_name_of_a_preset_or_one_of_ours(self, make):
        assert SlipstreamOptimizer("adam").policy is None
        assert SlipstreamOptimizer("adam", policy="default").policy == StalenessPolicy()
        for name in ("conservative", "balanced", "aggressive"):
            preset = getattr(StalenessPolicy, name)()
            given = name if make is str else preset
            assert SlipstreamOptimizer("adam", policy=given).policy == preset

    def test_what_is_compiled_by_name_trains(self):
        losses = {}
        for given in ("adagrad", optimizers.Adagrad()):
            model = click_model(
                embedding_of(random_table()), SlipstreamOptimizer(given, policy="default")
            )
            losses[str(given)] = fit(model, click_data(), epochs=2).history["loss"]
        assert len({tuple(one) for one in losses.values()}) == 1

    def test_an_unknown_name_is_named(self):
        with pytest.raises(ValueError, match="adamx"):
            SlipstreamOptimizer("adamx")
        with pytest.raises(ValueError, match="adamx"):
            SlipstreamOptimizer("adam", table_optimizer="adamx")

    @pytest.mark.parametrize("name", ["Adadelta", "Adamax", "Nadam"])
    def test_a_rule_that_tables_lack_is_refused_by_name_too(self, name):
        message = f"SGD, Adagrad, RowWiseAdagrad, Adam, AdamW, RMSprop, Ftrl.*got .*{name}"
        for arguments in (
            {"inner": name.lower()},
            {"inner": "sgd", "table_optimizer": name.lower()},
        ):
            with pytest.raises(ValueError, match=message):
                SlipstreamOptimizer(**arguments)

    @tf_keras_only
    @pytest.mark.parametrize("name", ["Adam", "SGD", "Adagrad", "Adamax"])
    def test_legacy_optimizers_are_refused_with_what_to_use(self, name):
        legacy = getattr(optimizers.legacy, name)()
        # Tables have no rule for Adamax; dense variables take any optimizer of Keras.
        of_tables = "one of the others" if name == "Adamax" else rf"keras\.optimizers\.{name}"
        of_dense = rf"keras\.optimizers\.{name}"
        arguments = (legacy,), ("sgd", None, legacy), (legacy, None, "sgd")
        for given, instead in zip(arguments, (of_tables, of_tables, of_dense)):
            with pytest.raises(ValueError, match=rf"legacy.*not supported: use {instead}\.$"):
                SlipstreamOptimizer(*given)

    @pytest.mark.parametrize("inner", [None, 0.5, optimizers.SGD], ids=str)
    def test_what_is_no_optimizer_is_refused(self, inner):
        with pytest.raises(ValueError, match=re.escape(repr(inner))):
            SlipstreamOptimizer(inner, table_optimizer="sgd")
        if inner is not None:
            with pytest.raises(ValueError, match=re.escape(repr(inner))):
                SlipstreamOptimizer("sgd", table_optimizer=inner)

    def test_an_optimizer_around_another_is_refused(self):
        scaling = keras.mixed_precision.LossScaleOptimizer(optimizers.SGD())
        for around in (scaling, SlipstreamOptimizer("sgd")):
            with pytest.raises(ValueError, match="none around another"):
                SlipstreamOptimizer(around, table_optimizer="sgd")
            with pytest.raises(ValueError, match="needs a sparse update rule"):
                SlipstreamOptimizer("sgd", table_optimizer=around)

    def test_what_would_read_whole_tables_is_refused_for_tables_alone(self):
        averaging = optimizers.Adam(use_ema=True)
        with pytest.raises(ValueError, match="cannot be used with `use_ema`"):
            SlipstreamOptimizer("sgd", table_optimizer=averaging)
        assert SlipstreamOptimizer(averaging, table_optimizer="sgd").inner_optimizer is averaging

    @keras_3_only
    def test_steps_that_are_not_counted_alike_are_refused(self):
        inner = optimizers.SGD(gradient_accumulation_steps=2)
        with pytest.raises(ValueError, match="without `gradient_accumulation_steps`"):
            SlipstreamOptimizer(inner, table_optimizer="sgd")


GRADS = [np.random.default_rng(step).normal(size=[3, 5]) for step in range(6)]
IDS = [[1, 5, 1], [0, 1, 2], [1, 1, 1], [5, 4, 3], [1, 5, 0], [2, 2, 1]]


def dense_variable():
    return (keras if IS_KERAS_3 else tf).Variable(np.ones([2], np.float32), name="dense")


def dense_grad(step):
    return tf.constant(GRADS[step][0, :2], tf.float32)


def trained(optimizer, variables=None, num_steps=6):
    """Returns the values of a table and a dense variable after some steps."""
    table = embedding_of(random_table(6, 5), name="user").weights[0]
    dense = dense_variable()
    for step in range(num_steps):
        grads = [slices(IDS[step], GRADS[step], 6), dense_grad(step)]
        optimizer.apply_gradients(zip(grads, [table, dense]))
    return values_of([table, dense])


def trained_apart(inner, table_optimizer, **options):
    """Returns the same, each variable under an optimizer of its own."""
    return [
        trained(SlipstreamOptimizer(table_optimizer()), **options)[0],
        trained(SlipstreamOptimizer(inner()), **options)[1],
    ]


class TestTablesHaveTheirOwnRule:
    CASES = {
        "adam, adagrad": (lambda: optimizers.Adam(0.125), lambda: optimizers.Adagrad(0.5)),
        "sgd, adam": (lambda: optimizers.SGD(0.5), lambda: optimizers.Adam(0.125)),
        "adagrad, momentum": (
            lambda: optimizers.Adagrad(0.5),
            lambda: optimizers.SGD(0.125, momentum=0.5),
        ),
        "decays": (
            lambda: optimizers.AdamW(0.125, weight_decay=0.25),
            lambda: optimizers.SGD(0.25, weight_decay=0.125),
        ),
        "clips norms": (
            lambda: optimizers.SGD(0.5, clipnorm=0.25),
            lambda: optimizers.SGD(0.5, clipnorm=0.5),
        ),
        "clips values": (
            lambda: optimizers.SGD(0.5),
            lambda: optimizers.SGD(0.5, clipvalue=0.25),
        ),
        "tables alone clip": (
            lambda: optimizers.SGD(0.5),
            lambda: optimizers.SGD(0.5, clipnorm=0.25),
        ),
        "schedules": (
            lambda: optimizers.SGD(optimizers.schedules.ExponentialDecay(0.5, 2, 0.5)),
            lambda: optimizers.Adam(
                optimizers.schedules.PiecewiseConstantDecay([1, 3], [0.5, 0.25, 0.125])
            ),
        ),
    }

    @pytest.mark.parametrize("case", CASES)
    def test_and_all_else_has_the_inner_one(self, case):
        inner, table_optimizer = self.CASES[case]
        together = SlipstreamOptimizer(inner(), table_optimizer=table_optimizer())
        assert_all_equal(trained(together), trained_apart(inner, table_optimizer))
        assert int(together.iterations) == 6
        assert int(together.table_optimizer.iterations) == 0

    def test_a_global_norm_is_that_of_whom_it_clips(self):
        """The tables' own is of the tables alone, the inner one's of all else."""
        table, dense = trained(
            SlipstreamOptimizer(
                optimizers.SGD(0.5), table_optimizer=optimizers.SGD(0.5, global_clipnorm=0.25)
            )
        )
        one_table = trained(SlipstreamOptimizer(optimizers.SGD(0.5, clipnorm=0.25)))[0]
        np.testing.assert_array_equal(table, one_table)
        np.testing.assert_array_equal(dense, trained(SlipstreamOptimizer(optimizers.SGD(0.5)))[1])
        table, dense = trained(
            SlipstreamOptimizer(
                optimizers.SGD(0.5, global_clipnorm=0.25), table_optimizer=optimizers.SGD(0.5)
            )
        )
        np.testing.assert_array_equal(table, trained(SlipstreamOptimizer(optimizers.SGD(0.5)))[0])
        alone, plain = dense_variable(), optimizers.SGD(0.5, global_clipnorm=0.25)
        for step in range(6):
            plain.apply_gradients([(dense_grad(step), alone)])
        np.testing.assert_array_equal(dense, alone.numpy())

    def test_inner_may_be_one_without_a_sparse_rule(self):
        dense, plain = dense_variable(), optimizers.Nadam(0.125)
        for step in range(6):
            plain.apply_gradients([(dense_grad(step), dense)])
        values = trained(SlipstreamOptimizer(optimizers.Nadam(0.125), table_optimizer="adagrad"))
        np.testing.assert_array_equal(values[1], dense.numpy())
        np.testing.assert_array_equal(values[0], trained(SlipstreamOptimizer("adagrad"))[0])

    def test_one_optimizer_given_twice_is_one(self):
        inner = optimizers.Adam(0.125)
        both = SlipstreamOptimizer(inner, table_optimizer=inner)
        assert both.table_optimizer is None
        assert_all_equal(trained(both), trained(SlipstreamOptimizer(optimizers.Adam(0.125))))

    def test_each_has_its_learning_rate(self):
        optimizer = SlipstreamOptimizer(optimizers.SGD(0.5), table_optimizer=optimizers.SGD(0.25))
        assert float(optimizer.learning_rate) == 0.5
        optimizer.learning_rate = 0.0
        table, dense = trained(optimizer, num_steps=1)
        assert dense.tolist() == [1, 1] and not np.array_equal(table, random_table(6, 5))
        optimizer = SlipstreamOptimizer(optimizers.SGD(0.5), table_optimizer=optimizers.SGD(0.25))
        optimizer.table_optimizer.learning_rate = 0.0
        table, dense = trained(optimizer, num_steps=1)
        assert dense.tolist() != [1, 1]
        np.testing.assert_array_equal(table, random_table(6, 5))

    def test_callbacks_change_the_inner_ones(self):
        optimizer = SlipstreamOptimizer(optimizers.SGD(0.5), table_optimizer=optimizers.SGD(0.25))
        model = click_model(embedding_of(random_table()), optimizer)
        schedule = keras.callbacks.LearningRateScheduler(lambda epoch: 0.125)
        fit(model, click_data(), callbacks=[schedule])
        assert float(optimizer.learning_rate) == 0.125
        assert float(optimizer.table_optimizer.learning_rate) == 0.25

    def test_variables_that_are_excluded_do_not_decay(self):
        def optimizer():
            return SlipstreamOptimizer(
                optimizers.SGD(0.5, weight_decay=0.25),
                table_optimizer=optimizers.SGD(0.5, weight_decay=0.25),
            )

        tables = [embedding_of(np.ones([3, 2], np.float32), name=n).weights[0] for n in "ab"]
        excluding = optimizer()
        excluding.exclude_from_weight_decay(var_list=[tables[0]])
        zeros = slices([1, 1], np.zeros([2, 2]), 3)
        excluding.apply_gradients((zeros, table) for table in tables)
        kept, decayed = values_of(tables)
        assert kept.tolist() == [[1, 1]] * 3
        assert decayed.tolist() == [[1, 1], [0.875, 0.875], [1, 1]]

    @keras_3_only
    def test_a_fixed_loss_scale_is_the_inner_ones(self):
        scaled = SlipstreamOptimizer(
            optimizers.SGD(0.5, loss_scale_factor=8.0), table_optimizer=optimizers.SGD(0.25)
        )
        table = embedding_of(random_table(6, 5)).weights[0]
        dense = dense_variable()
        grads = [slices(IDS[0], 8 * GRADS[0], 6), 8 * dense_grad(0)]
        scaled.apply_gradients(zip(grads, [table, dense]))
        plain = SlipstreamOptimizer(optimizers.SGD(0.5), table_optimizer=optimizers.SGD(0.25))
        assert_all_equal(values_of([table, dense]), trained(plain, num_steps=1))

    def test_a_policy_goes_with_the_tables_rule(self):
        def model_of(optimizer):
            model = click_model(embedding_of(random_table(20), name="user"), optimizer)
            train_steps(model, click_data(16 * 30, num_rows=20), 0, 30)
            return model

        apart = SlipstreamOptimizer("sgd", policy=sleepy(), table_optimizer=optimizers.Adam(0.0625))
        model = model_of(apart)
        stats = apart.skip_stats()["user"]
        assert stats.num_deferred_lookups > 0
        assert len(apart.tables["user"].slots) == 2
        before = model.optimizer.tables["user"].table.numpy()
        apart.wake_all()
        assert not np.array_equal(model.optimizer.tables["user"].table.numpy(), before)


def full_optimizer(inner=None, table_optimizer=None):
    optimizer = SlipstreamOptimizer(
        optimizers.SGD(0.5, momentum=0.5) if inner is None else inner,
        policy=sleepy(),
        table_optimizer=optimizers.Adam(0.0625) if table_optimizer is None else table_optimizer,
        name="ours",
    )
    optimizer.worker_cache = WorkerCache(num_bytes=1 << 20, max_age=7)
    optimizer.wire_dtype = "bfloat16"
    return optimizer


class TestConfig:
    @pytest.mark.parametrize(
        "table_optimizer",
        [
            lambda: optimizers.Adam(0.0625),
            lambda: RowWiseAdagrad(0.5, epsilon=0.125),
            lambda: optimizers.SGD(optimizers.schedules.ExponentialDecay(0.5, 2, 0.5)),
        ],
        ids=["Adam", "RowWiseAdagrad", "schedule"],
    )
    @pytest.mark.parametrize("through", ["config", "json"])
    def test_it_has_all_that_was_set(self, table_optimizer, through):
        made = full_optimizer(table_optimizer=table_optimizer())
        if through == "config":
            again = SlipstreamOptimizer.from_config(made.get_config())
        else:
            serialized = json.loads(json.dumps(keras.saving.serialize_keras_object(made)))
            again = keras.saving.deserialize_keras_object(serialized)
        assert again.get_config() == made.get_config()
        assert again.worker_cache == WorkerCache(num_bytes=1 << 20, max_age=7)
        assert again.wire_dtype == "bfloat16" and again.name == "ours"
        assert again.policy == sleepy()
        assert type(again.inner_optimizer) is optimizers.SGD
        assert type(again.table_optimizer) is type(made.table_optimizer)
        assert_all_equal(trained(again), trained(made))

    def test_configs_of_older_releases_are_read(self):
        config = SlipstreamOptimizer(optimizers.SGD(0.5)).get_config()
        for name in ("worker_cache", "wire_dtype"):
            del config[name]
        again = SlipstreamOptimizer.from_config(config)
        assert again.worker_cache == WorkerCache() and again.wire_dtype == "float32"
        assert again.table_optimizer is None

    def test_keras_takes_the_config_as_an_optimizer(self):
        config = keras.saving.serialize_keras_object(full_optimizer())
        assert type(optimizers.get(config)) is SlipstreamOptimizer


DATA = click_data(16 * 60, num_rows=20)


class TestSaving:
    def make(self, seed=0):
        return click_model(embedding_of(random_table(20, seed=seed), name="user"), full_optimizer())

    def check(self, restored):
        """Fails unless a model goes on after 20 steps as one that never stopped."""
        whole = self.make()
        train_steps(whole, DATA, 0, 20)
        whole.optimizer.settle()
        for model in (whole, restored):
            train_steps(model, DATA, 20, 50)
            assert int(model.optimizer.iterations) == 50
        assert_all_equal(restored.get_weights(), whole.get_weights())
        states = [values_of(model.optimizer.variables) for model in (restored, whole)]
        assert_all_equal(*states)
        assert restored.optimizer.skip_stats() == whole.optimizer.skip_stats()
        assert whole.optimizer.skip_stats()["user"].num_deferred_lookups > 0

    @pytest.mark.parametrize("file", ["model.keras", *([] if IS_KERAS_3 else ["model.h5"])])
    def test_a_file_continues_as_if_never_stopped(self, file, tmp_path):
        model = self.make()
        train_steps(model, DATA, 0, 20)
        model.save(tmp_path / file)
        loaded = keras.models.load_model(tmp_path / file)
        assert type(loaded.optimizer.table_optimizer) is optimizers.Adam
        self.check(loaded)

    @pytest.mark.parametrize("built", [True, False], ids=["built before", "built by a step"])
    def test_a_checkpoint_continues_as_if_never_stopped(self, built, tmp_path):
        model = self.make()
        train_steps(model, DATA, 0, 20)
        model.optimizer.settle()
        checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
        path = checkpoint.save(str(tmp_path / "checkpoint"))
        restored = self.make(seed=9)
        if built:
            restored.optimizer.build(restored.trainable_variables)
        tf.train.Checkpoint(model=restored, optimizer=restored.optimizer).restore(path)
        self.check(restored)

    def test_the_rate_that_was_set_for_tables_is_saved(self, tmp_path):
        model = self.make()
        model.optimizer.table_optimizer.learning_rate = 0.03125
        train_steps(model, DATA, 0, 3)
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert float(loaded.optimizer.table_optimizer.learning_rate) == 0.03125

    def test_set_weights_sets_the_variables_of_all_three(self):
        models = [self.make(), self.make()]
        train_steps(models[0], DATA, 0, 20)
        train_steps(models[1], DATA, 0, 1)
        weights = values_of(models[0].optimizer.variables)
        models[1].optimizer.set_weights(weights)
        assert_all_equal(values_of(models[1].optimizer.variables), weights)
        variables = [id(variable) for variable in models[0].optimizer.variables]
        assert len(set(variables)) == len(variables)
