"""That at run time `engine/registry.py`, and nothing else, leads from a variable to its table."""

import gc
import weakref

import pytest

from tests.models import click_data, click_model, embedding_of, fit, num_held, random_table, sleepy
from tf_slipstream import SlipstreamOptimizer, _keras_hooks, model_tables
from tf_slipstream._compat import keras, tf_variable
from tf_slipstream.engine import registry


def sgd():
    return SlipstreamOptimizer(keras.optimizers.SGD(0.125), policy=sleepy())


def trained_model():
    model = click_model(embedding_of(random_table(), name="user"), sgd())
    fit(model, click_data())
    return model


def attributes_of(variable):
    return set(vars(variable)) | set(vars(tf_variable(variable)))


def test_a_variable_of_a_table_has_no_attribute_that_leads_to_its_optimizer():
    model = trained_model()
    stock = click_model(keras.layers.Embedding(10, 3), keras.optimizers.SGD(0.125))
    fit(stock, click_data())
    table = model.layers[1].embeddings
    # Whoever assigns to a table ends what is held of it: the registry is asked who holds it.
    assert attributes_of(table) - attributes_of(stock.layers[1].embeddings) == {"assign"}
    closure = table.assign.__closure__
    held = [cell.cell_contents for cell in closure]
    assert not [one for one in held if isinstance(one, (SlipstreamOptimizer, keras.layers.Layer))]
    for variable, other in zip(model.weights[1:], stock.weights[1:], strict=True):
        assert attributes_of(variable) == attributes_of(other)


@pytest.fixture
def empty_registry(monkeypatch):
    def forget():
        for name in ("_specs", "_holders"):
            monkeypatch.setattr(registry, name, registry._Weakly())

    return forget


def test_without_the_registry_nothing_finds_a_table(empty_registry):
    model = trained_model()
    table = model.layers[1].embeddings
    assert _keras_hooks.tables_of(model.variables)
    assert list(model_tables.tables_of(model, "A test")) == [model.optimizer.engine]

    empty_registry()
    assert _keras_hooks.tables_of(model.variables) == []
    other = sgd()
    other.build([table])
    assert other.tables == {}


def test_what_is_held_is_found_through_it_alone(empty_registry):
    model = trained_model()
    ids, labels = click_data()
    for _ in range(6):
        model.train_on_batch(ids, labels)
    assert num_held(model.optimizer) > 0
    empty_registry()
    model.get_weights()
    assert num_held(model.optimizer) > 0
    registry.add_table(model.optimizer.tables["user"].table, model.layers[1]._spec)
    registry.add_holder(model.optimizer.tables["user"].table, model.optimizer.engine)
    model.get_weights()
    assert num_held(model.optimizer) == 0


def test_it_keeps_nothing_alive():
    layer = embedding_of(random_table(), name="user")
    optimizer = sgd()
    optimizer.build([layer.embeddings])
    table = tf_variable(layer.embeddings)
    assert registry.holders_of(table) == [optimizer.engine]
    engine = weakref.ref(optimizer.engine)
    del optimizer
    gc.collect()
    assert engine() is None and registry.holders_of(table) == []
    known = weakref.ref(table)
    del layer, table
    gc.collect()
    assert known() is None
