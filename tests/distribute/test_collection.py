"""A collection over replicas, and on parameter servers."""

import contextlib
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from tests.distribute import programs
from tests.distribute.replicas import strategy_of
from tests.field_models import DIMS, collection_model, collection_of, field_data, rows_of
from tests.models import fit, num_asleep, sleepy, train_steps
from tf_slipstream import SlipstreamOptimizer, _compat, copy_training
from tf_slipstream._compat import keras
from tf_slipstream.ops import _library

DATA = field_data(16 * 20)


def optimizer(policy=None):
    return SlipstreamOptimizer(keras.optimizers.Adam(0.0625), policy=policy)


def over_replicas(policy=None):
    with strategy_of(2).scope():
        return collection_model(optimizer(policy), collection_of())


def test_replicas_train_as_one_device_does():
    model, alone = over_replicas(), collection_model(optimizer())
    for one in (model, alone):
        fit(one, DATA)
    for name in DIMS:
        np.testing.assert_allclose(rows_of(model)[name], rows_of(alone)[name], rtol=1e-4, atol=1e-5)
    assert model.optimizer.skip_stats() == alone.optimizer.skip_stats()
    of_fields = [one.get_layer("fields").skip_stats() for one in (model, alone)]
    assert of_fields[0] == of_fields[1] and min(s.num_lookups for s in of_fields[0].values()) > 0


def test_without_native_ops_replicas_count_the_same_by_field():
    counts = []
    for context in (contextlib.nullcontext(), _library.fallback()):
        with context:
            model = over_replicas()
            train_steps(model, DATA, 0, 3)
            counts.append(model.get_layer("fields").skip_stats())
    assert counts[0] == counts[1]


def test_rows_sleep_on_replicas_and_rows_settles():
    model = over_replicas(sleepy())
    train_steps(model, DATA, 0, 20)
    assert num_asleep(model.optimizer) > 0
    of_all = vars(model.optimizer.skip_stats()["fields"])
    of_each = [vars(one) for one in model.get_layer("fields").skip_stats().values()]
    for name in ("num_lookups", "num_deferred_lookups", "num_row_updates", "num_stale_rows"):
        assert sum(one[name] for one in of_each) == of_all[name] > 0
    rows = np.concatenate([*rows_of(model).values()])
    for table in strategy_of(2).experimental_local_results(model.optimizer.tables["fields"].table):
        np.testing.assert_array_equal(tf.convert_to_tensor(table), rows)


def test_a_bad_id_on_a_replica_is_named():
    ids = DATA[0][:16].copy()
    ids[12, 1] = 12
    with pytest.raises(tf.errors.InvalidArgumentError, match="field item: id 12 is not in"):
        over_replicas().train_on_batch(ids, DATA[1][:16])


def test_what_replicas_have_is_not_copied():
    with pytest.raises(ValueError, match="'fields' is on parameter servers or on several replicas"):
        copy_training(over_replicas(), collection_model(optimizer()))


def test_parameter_servers_hold_and_train_it(cluster):
    partitioned = not _compat.IS_KERAS_3
    result = cluster.run(
        pathlib.Path(programs.__file__),
        "collection",
        json.dumps({"partitioned": partitioned}),
        timeout=120,
    )
    assert result["num_shards"] == 2
    assert result["num_wrong"] == 0
    assert result["num_lookups"] == 4 * 64 * 6
    assert len(result["said"]) == 6 and result["num_changed_by_bad_ids"] == 0
    assert all("field item: id 40000 is not in [0, 40000)" in said for said in result["said"])
    assert result["saves_whole_table"]
