"""The pilot: a logistic regression that learns while it predicts."""

import collections
import numbers

import tensorflow as tf

from tf_slipstream import _compat
from tf_slipstream.embedding import SlipstreamEmbedding
from tf_slipstream.optimizer import SlipstreamOptimizer
from tf_slipstream.selection.lookups import Fields

# Columns of the pilot's table. The second one grows by the rule itself, with gradient -1 at each
# lookup: about `2 learning_rate sqrt(n)` after n batches that had the row. So what is gathered says
# how popular a row is, and no count of its own is read and written.
_WEIGHT, _POPULARITY = 0, 1

# What the pilot says of a batch before it learns it: log odds float32 `[batch]`; and for `learn`,
# the `Lookups`, their popularities and dense features `[batch, num_dense]` or None.
Prediction = collections.namedtuple("Prediction", ["log_odds", "lookups", "popularities", "dense"])


@_compat.register_serializable
class Pilot(_compat.keras.layers.Layer):
    """An online logistic regression with one weight per id, which sees every input.

    `log odds = bias + sum_field weight[field, id] + <dense weights, dense features>`, of several
    ids of a field the mean. It learns by Adagrad, with the sum of a batch's gradients per row, and
    is made for `SelectiveModel` and `InputSelector`, which have it predict each input before it
    learns it.

    Args:
        input_dims: Number of ids of each field: a dict from names, or a list in order.
        ids: Function of the model's inputs that gives the ids; None: the inputs are the ids. Ids
            are a dict by name, a list in order, or one int tensor `[batch, num_fields]`. A field's
            ids are dense `[batch]` or `[batch, num_ids]`, `tf.RaggedTensor` or `tf.SparseTensor`.
        dense: Function of the model's inputs that gives dense features, float `[batch, num_dense]`,
            scaled as a model takes them (about 1); None: there are none.
        num_dense: Number of dense features.
        learning_rate: Of Adagrad.
        **kwargs: Keras's other arguments of a layer.

    Raises:
        ValueError: For dimensions that are no positive integers, or `dense` without `num_dense`.

    Example:

    ```python
    pilot = slipstream.Pilot({"user": 1_000_000, "item": 200_000})
    selective = slipstream.SelectiveModel(model, pilot, keep=0.5)
    ```
    """

    def __init__(self, input_dims, ids=None, dense=None, num_dense=0, learning_rate=0.1, **kwargs):
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.input_dims = input_dims = _checked(input_dims)
        if (dense is None) != (not num_dense):
            raise ValueError(
                "`dense`, a function of the model's inputs, and `num_dense`, how many features it "
                f"gives, go together; got dense={dense!r} and num_dense={num_dense!r}."
            )
        # Behind a function, so that neither Keras takes the functions for layers of ours.
        self._functions = lambda: (ids, dense)
        self.num_dense, self.learning_rate = num_dense, learning_rate
        fields = Fields(input_dims)
        self._fields = lambda: fields
        self.rows = SlipstreamEmbedding(
            fields.num_rows, 2, embeddings_initializer="zeros", dtype="float32", name="pilot_rows"
        )
        self.rows.build(None)
        self.bias = self.add_weight(shape=[1 + num_dense], initializer="zeros", name="bias")
        # It is trained by `learn` alone, whatever the model that it is part of.
        self.trainable = False
        self.built = True

    @property
    def field_names(self):
        """Names of the fields, those of a list being `"0"`, `"1"`, ..."""
        return self._fields().names

    def make_optimizer(self):
        """Returns a new optimizer, which `learn` is given."""
        adagrad = _compat.keras.optimizers.Adagrad(
            self.learning_rate, initial_accumulator_value=0.1
        )
        optimizer = SlipstreamOptimizer(adagrad, name="pilot_optimizer")
        optimizer.build(self._trained())
        return optimizer

    def _trained(self):
        return [_compat.table_of(self.rows), self.bias]

    def predict_batch(self, inputs):
        """Returns the `Prediction` of a batch of the model's inputs."""
        find_ids, find_dense = self._functions()
        lookups = self._fields().lookups(inputs if find_ids is None else find_ids(inputs))
        rows = tf.gather(_compat.tf_variable(_compat.table_of(self.rows)), lookups.rows)
        bias = _compat.tf_variable(self.bias)
        sums = lookups.sums(rows[:, _WEIGHT])
        log_odds, dense = sums + bias[0], None
        if find_dense is not None:
            dense = tf.cast(find_dense(inputs), tf.float32)
            dense = tf.ensure_shape(dense, [None, self.num_dense])
            log_odds += tf.linalg.matvec(dense, bias[1:])
        return Prediction(log_odds, lookups, rows[:, _POPULARITY], dense)

    def call(self, inputs):
        """Returns the log odds of a batch, float32 `[batch]`, by stock TensorFlow ops."""
        return self.predict_batch(inputs).log_odds

    def learn(self, prediction, labels, optimizer, weights=None):
        """Learns a batch that was predicted.

        Args:
            prediction: `Prediction` of the batch.
            labels: float32 `[batch]`.
            optimizer: From `make_optimizer`.
            weights: float32 `[batch]`, the inputs' own; None: 1.
        """
        grads = tf.sigmoid(prediction.log_odds) - labels  # [batch]
        if weights is not None:
            grads *= weights
        lookups = prediction.lookups
        row_grads = lookups.gradients(grads)
        table = _compat.table_of(self.rows)
        slices = tf.IndexedSlices(
            tf.stack([row_grads, -tf.ones_like(row_grads)], axis=1),
            lookups.rows,
            tf.constant([self._fields().num_rows, 2], tf.int64),
        )
        bias_grad = tf.reduce_sum(grads, keepdims=True)
        if prediction.dense is not None:
            of_dense = tf.linalg.matvec(prediction.dense, grads, transpose_a=True)
            bias_grad = tf.concat([bias_grad, of_dense], axis=0)
        optimizer.apply_gradients([(slices, table), (bias_grad, self.bias)])

    def popularity_of(self, num_batches):
        """Returns the popularity of a row that so many batches had, about."""
        return 2 * self.learning_rate * num_batches**0.5

    def compute_output_shape(self, input_shape):
        return (None,)

    def get_config(self):
        find_ids, find_dense = self._functions()
        serialize = _compat.keras.saving.serialize_keras_object
        return super().get_config() | {
            "input_dims": self.input_dims,
            "ids": None if find_ids is None else serialize(find_ids),
            "dense": None if find_dense is None else serialize(find_dense),
            "num_dense": self.num_dense,
            "learning_rate": self.learning_rate,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for name in ("ids", "dense"):
            if config.get(name) is not None and not callable(config[name]):
                config[name] = _compat.keras.saving.deserialize_keras_object(config[name])
        return cls(**config)


def _checked(input_dims):
    dims = input_dims.values() if isinstance(input_dims, dict) else input_dims
    is_collection = isinstance(input_dims, (dict, list, tuple)) and len(input_dims) > 0
    is_int = is_collection and all(
        isinstance(dim, numbers.Integral) and not isinstance(dim, bool) and dim > 0 for dim in dims
    )
    if not is_int:
        raise ValueError(
            "`input_dims` must be the number of ids of each field, a dict from names to positive "
            f"integers or a list of them; got {input_dims!r}."
        )
    if isinstance(input_dims, dict):
        return {name: int(dim) for name, dim in input_dims.items()}
    return [int(dim) for dim in input_dims]
