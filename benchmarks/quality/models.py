"""The models: from rows that were looked up to logits."""

import tensorflow as tf

keras = tf.keras


class Dlrm:
    """A deep learning recommendation model (Naumov et al. 2019); see `examples/dlrm.py`.

    Args:
        dim: Length of an embedding row.
        bottom: Units of the hidden layers on the dense features.
        top: Units of the hidden layers on the interactions.
    """

    def __init__(self, dim, bottom, top):
        self._bottom = [_dense(units) for units in (*bottom, dim)]
        self._top = [_dense(units) for units in top] + [_dense(1, None)]

    @property
    def layers(self):
        return [*self._bottom, *self._top]

    def __call__(self, rows, dense):
        """Returns logits `[batch]` of rows `[batch, num_fields, dim]` and dense features."""
        x = dense
        for layer in self._bottom:
            x = layer(x)
        vectors = tf.concat([x[:, tf.newaxis], rows], axis=1)
        # Each pair comes twice, because picking one half takes longer than multiplying by it.
        pairs = tf.matmul(vectors, vectors, transpose_b=True)
        y = tf.concat([x, tf.reshape(pairs, [-1, vectors.shape[1] ** 2])], axis=1)
        for layer in self._top:
            y = layer(y)
        return y[:, 0]


class TwoTower:
    """Dot products of a query with candidates.

    The query is the mean of the first rows. With a tower it goes through one linear layer.

    Args:
        dim: Length of an embedding row.
        num_queries: Rows that make the query.
        has_tower: Whether there is such a layer.
    """

    def __init__(self, dim, num_queries, has_tower):
        self._num_queries = num_queries
        self._tower = [_dense(dim, None)] if has_tower else []
        self._bias = _dense(1, None)

    @property
    def layers(self):
        return [*self._tower, self._bias]

    def query(self, rows):
        """Returns `[batch, dim]` of rows `[batch, num_queries, dim]`."""
        x = tf.reduce_mean(rows, axis=1)
        for layer in self._tower:
            x = layer(x)
        return x

    def __call__(self, rows, dense):
        """Returns logits `[batch, num_candidates]` of rows `[batch, num_lookups, dim]`."""
        query = self.query(rows[:, : self._num_queries])
        dots = tf.linalg.matvec(rows[:, self._num_queries :], query)
        # A layer of one constant input, so that there is one kind of dense variable.
        return dots + self._bias(tf.ones([1, 1]))


class Clicks(TwoTower):
    """The same for one candidate: logits `[batch]`."""

    def __call__(self, rows, dense):
        return super().__call__(rows, dense)[:, 0]


def _dense(units, activation="relu"):
    return keras.layers.Dense(units, activation=activation)
