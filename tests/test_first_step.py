"""The first step: how often it is traced, which takes most of its time."""

import pytest

from tests.models import click_data, click_model, embedding_of, random_table
from tf_slipstream import SlipstreamOptimizer
from tf_slipstream._compat import keras


def num_traces(model, train, monkeypatch):
    """Returns how often the step of a model is traced while it trains."""
    seen, step = [], keras.Model.train_step

    def counted(self, *args, **kwargs):
        seen.append(self)
        return step(self, *args, **kwargs)

    # It must still be Keras's own step.
    owner = next(one for one in keras.Model.__mro__ if "train_step" in vars(one))
    monkeypatch.setattr(owner, "train_step", counted)
    train(model)
    return len(seen)


@pytest.mark.parametrize("way", ["fit", "train_on_batch"])
def test_a_step_is_traced_once(way, monkeypatch):
    model = click_model(embedding_of(random_table()), SlipstreamOptimizer("adam"))
    data = click_data(16)
    assert not model.optimizer.tables

    def train(model):
        options = {"verbose": 0} if way == "fit" else {}
        getattr(model, way)(*data, **options)

    assert num_traces(model, train, monkeypatch) == 1
    assert model.optimizer.tables


def test_a_step_of_the_users_own_says_itself_what_it_trains():
    class Model(keras.Model):
        def train_step(self, *args):
            assert not self.optimizer.tables
            return super().train_step(*args)

    layer = embedding_of(random_table())
    ids = keras.Input([3], dtype="int64")
    output = keras.layers.Dense(1)(keras.layers.Flatten()(layer(ids)))
    model = Model(ids, output)
    model.compile(SlipstreamOptimizer("adam"), loss="mse", run_eagerly=True)
    model.train_on_batch(*click_data(16))
    assert model.optimizer.tables
