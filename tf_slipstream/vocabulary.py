"""The Keras layer that gives raw ids rows of a table."""

import dataclasses
import types
import weakref

import numpy as np
import tensorflow as tf

from tf_slipstream import _compat
from tf_slipstream._compat import variables
from tf_slipstream.engine import registry, vocabulary_shards
from tf_slipstream.engine.exchanged_ids import exchanged_ids
from tf_slipstream.engine.server_table import check_tasks, is_on_servers, num_tasks
from tf_slipstream.engine.taken_back import TakenBack
from tf_slipstream.ids import kind
from tf_slipstream.ops.admit_ids import admit_ids
from tf_slipstream.ops.encoded_ids import decoded_ids, encoded_ids
from tf_slipstream.ops.find_ids import find_ids
from tf_slipstream.resizing import resize
from tf_slipstream.state import schema
from tf_slipstream.state.table import TableState
from tf_slipstream.state.vocabulary import (
    NAMES,
    SERVED,
    STEP_BITS,
    VocabularySettings,
    counter,
    grown,
    with_ids,
)
from tf_slipstream.table_layer import check_dim

_MAX_ADMIT_AFTER = 255
# Half of the steps that a row's last lookup is told apart by.
_MAX_FORGET_AFTER = 1 << (STEP_BITS - 1)
_INTEGERS = (tf.int32, tf.int64, tf.uint32, tf.uint64, tf.int16, tf.int8, tf.uint16, tf.uint8)


@dataclasses.dataclass(frozen=True)
class VocabularyStats:
    """What a `DynamicVocabulary` did since training began; all are ints.

    Attributes:
        capacity: Rows in all.
        num_ids: Ids that have a row now.
        num_steps: Training steps.
        num_lookups: Lookups of training, those of padding too.
        num_known_lookups: Those of ids that had a row or got one by it.
        num_oov_lookups: Those of ids without a row of their own.
        num_padding_lookups: Those of the padding id.
        num_too_long_lookups: Those of strings that are too long, part of `num_oov_lookups`.
        num_admitted: How often an id got a row.
        num_forgotten: How often a row was taken back because nobody had looked it up for long.
        num_evicted: How often one was taken back to make room.
    """

    capacity: int
    num_ids: int
    num_steps: int
    num_lookups: int
    num_known_lookups: int
    num_oov_lookups: int
    num_padding_lookups: int
    num_too_long_lookups: int
    num_admitted: int
    num_forgotten: int
    num_evicted: int


@_compat.register_serializable
class DynamicVocabulary(_compat.keras.layers.Layer):
    """Gives raw ids, as they come, rows of a table: for a `SlipstreamEmbedding` behind it.

    In training an id that has no row gets a free one at its `admit_after`-th lookup. Until then,
    and where there is no row free, it shares one of `num_oov` rows with others. A row that nobody
    has looked up for `forget_after` steps is taken back, and when the table is full the coldest
    are, by how long ago and in how many steps they were looked up. The table behind resets such a
    row to initial values, its slots to those of a new row, and what the policy knows of it to
    nothing. Otherwise (`predict`, `evaluate`, exported models) it only looks ids up, by stock
    TensorFlow ops.

    Full ids are kept and compared, so that no two share a row by accident. Row 0 is that of the
    padding id, if there is one, the next `num_oov` are those of ids without a row of their own.

    Args:
        capacity: Rows of the table behind it: its `input_dim`, those for padding and unknown ids
            among them.
        admit_after: Lookups at which an id gets a row, 1 to 255. A sketch counts them: now and then
            it counts an id for another, which then gets its row earlier; and what was counted long
            ago counts less.
        forget_after: Steps without a lookup after which an id loses its row, within an eighth more
            of them, at most 2^26; None: only when the table is full.
        num_oov: Rows for ids without one of their own, by a hash of the id.
        dtype: `"int64"`, for integers of any size, or `"string"`.
        padding_id: The id that is padding; None: none is. Its row is 0, which a table with
            `mask_zero=True` masks and leaves out of bags. By default -1, and `""` of strings.
        max_id_bytes: The longest string that is kept, rounded up to 8 n - 1 bytes. A longer one
            never gets a row of its own.
        **kwargs: Keras's: `name`, `trainable`. With `trainable=False` no id gets or loses a row.

    Call arguments:
        inputs: Ids, dense `[...]`, `tf.RaggedTensor` or `tf.SparseTensor`.
        training: Whether ids get rows and lose them.

    Output: int64 rows in `[0, capacity)`, in the form of the ids. Give them to the table itself:
        to a `SlipstreamEmbedding`, or as a field's in a dict to a `SlipstreamEmbeddingCollection`.

    Raises:
        ValueError: At construction, for arguments that make no sense. At a call, for ids of another
            type.
        tf.errors.InvalidArgumentError: In training, where rows that it took back were not reset,
            because another operation came between it and the table.

    Example:

    ```python
    ids = keras.Input((), dtype="string")
    rows = slipstream.DynamicVocabulary(100_000, admit_after=2, dtype="string")(ids)
    vectors = slipstream.SlipstreamEmbedding(100_000, 32)(rows)
    ```
    """

    def __init__(
        self,
        capacity,
        admit_after=1,
        forget_after=None,
        num_oov=1,
        dtype="int64",
        padding_id=-1,
        max_id_bytes=47,
        **kwargs,
    ):
        for argument, value in {
            "capacity": capacity,
            "admit_after": admit_after,
            "num_oov": num_oov,
            "max_id_bytes": max_id_bytes,
        }.items():
            check_dim(argument, value)
        if forget_after is not None:
            check_dim("forget_after", forget_after)
            if forget_after > _MAX_FORGET_AFTER:
                raise ValueError(
                    f"`forget_after` must be at most {_MAX_FORGET_AFTER}, got {forget_after}."
                )
        if admit_after > _MAX_ADMIT_AFTER:
            raise ValueError(f"`admit_after` must be at most 255, got {admit_after!r}.")
        if dtype not in ("int64", "string"):
            raise ValueError(f"`dtype` must be 'int64' or 'string', got {dtype!r}.")
        kwargs["autocast"] = False  # ids are no floats
        super().__init__(dtype="int64", **kwargs)
        is_string = dtype == "string"
        # By -1 strings mean "by default".
        padding_id = "" if is_string and padding_id == -1 else padding_id
        self.capacity, self.admit_after, self.forget_after = capacity, admit_after, forget_after
        self.num_oov, self.padding_id, self.max_id_bytes = num_oov, padding_id, max_id_bytes
        self._settings = VocabularySettings(
            num_words=max_id_bytes // 8 + 1 if is_string else 1,
            padding=(),
            num_oov=num_oov,
            is_string=is_string,
            admit_after=admit_after,
            forget_after=forget_after or 0,
        )
        if padding_id is not None:
            (words,) = self._words_of([padding_id], "padding_id")
            self._settings = dataclasses.replace(self._settings, padding=tuple(map(int, words)))
        if capacity <= self._settings.first_row:
            raise ValueError(
                f"`capacity` must be above {self._settings.first_row}, the rows for padding and "
                f"for `num_oov`, got {capacity}."
            )
        self.supports_jit = False
        # Plain, so that neither Keras tracks what is in it.
        self._own = types.SimpleNamespace(
            tables_behind={}, is_on_servers=False, starts=(0, capacity)
        )

    @property
    def _user(self):
        return f"DynamicVocabulary '{self.name}'"

    @property
    def id_dtype(self):
        """The argument `dtype`."""
        return "string" if self._settings.is_string else "int64"

    def build(self, input_shape=None):
        if self.built:
            return
        strategy = tf.distribute.get_strategy()
        if is_on_servers(strategy):
            self._add_shards(strategy)
        elif tf.distribute.has_strategy():
            self._add_variables(self.capacity)
        else:
            # The op works on host memory, whatever device tables are on.
            with tf.device("/CPU:0"):
                self._add_variables(self.capacity)
        self._register()
        self.built = True

    def _add_shards(self, strategy):
        """Adds a vocabulary for each server, all variables of which are on it."""
        check_tasks(strategy)
        starts = vocabulary_shards.row_starts(self.capacity, self._settings, num_tasks("ps"))
        self._own.is_on_servers, self._own.starts = True, tuple(starts)
        for shard, (start, end) in enumerate(zip(starts, starts[1:])):
            # Scalars go to the servers in turn, and are never divided.
            anchor = tf.Variable(0)
            with strategy.extended.colocate_vars_with(anchor):
                self._add_variables(end - start, shard)

    def _add_variables(self, capacity, shard=0):
        for name, (shape, dtype) in self._settings.shapes(capacity).items():
            self._add_variable(name, shape, dtype, shard)

    def _add_variable(self, name, shape, dtype, shard=0):
        # Of an attribute: else Keras 3 does not save what a SavedModel needs.
        name = name if self._num_shards == 1 else f"{name}_{shard}"
        setattr(self, f"_map_{name}", _compat.add_replicated(self, name, shape, dtype))

    @property
    def _num_shards(self):
        """On how many parameter servers it is; 1 without them."""
        return len(self._own.starts) - 1

    def _variables(self, shard=0):
        """Returns the `tf.Variable`s by name."""
        return {
            name: _compat.tf_variable(variable) for name, variable in self._state_of(shard).items()
        }

    def _shards(self):
        return [self._variables(shard) for shard in range(self._num_shards)]

    def _state_of(self, shard):
        end = "" if self._num_shards == 1 else f"_{shard}"
        return {name: getattr(self, f"_map_{name}{end}") for name in NAMES}

    @property
    def _state(self):
        return self._state_of(0)

    def _register(self):
        """Tells the registry what training alone needs, and what of the rest changes by rows."""
        for found in self._shards():
            if not all(isinstance(one, tf.Variable) for one in found.values()):
                return  # Keras 3 makes them later
            for name in NAMES:
                if name not in SERVED:
                    registry.add_training_state(found[name])

    def call(self, inputs, training=None):
        self._register()
        ids = self._as_ids(inputs)
        admits = self.trainable and _compat.is_training_step(training)
        flat = _flat(ids)
        words = encoded_ids(self._settings, tf.reshape(flat, [-1]))
        if not admits:
            rows = self._find(words)
            return _like(ids, tf.reshape(rows, tf.shape(flat)))
        all_words, of_this_replica = exchanged_ids(words)
        rows, taken = self._admit(all_words)
        rows = of_this_replica(rows)
        outputs = _like(ids, tf.reshape(rows, tf.shape(flat)))
        taken.go_with(outputs)
        return outputs

    def _find(self, words):
        if self._num_shards > 1:
            return vocabulary_shards.find(self._shards(), self._settings, self._own.starts, words)
        found = self._variables()
        return find_ids(found["index"], found["row_ids"], self._settings, words)

    def _admit(self, words):
        """Returns rows, and `TakenBack`."""
        shards = self._shards()
        if self._own.is_on_servers:
            rows, taken, steps, nums = vocabulary_shards.admit(
                self.name, shards, self._settings, self._own.starts, words
            )
            counts = [(shard["counters"], num) for shard, num in zip(shards, nums)]
            return rows, TakenBack(taken, tf.reduce_max(tf.stack(steps)), tuple(counts), self)
        rows, taken, step = admit_ids(self.name, shards[0], self._settings, words)
        count = (shards[0]["counters"], tf.size(taken, tf.int64))
        return rows, TakenBack(taken, step, (count,), self)

    def _as_ids(self, inputs):
        if not isinstance(inputs, (tf.Tensor, tf.RaggedTensor, tf.SparseTensor)):
            inputs = tf.convert_to_tensor(inputs)
        is_good = (inputs.dtype == tf.string) if self._settings.is_string else None
        if is_good is None:
            is_good = inputs.dtype in _INTEGERS
        if not is_good:
            raise ValueError(
                f"{self._user} has dtype '{self.id_dtype}' and got ids of {inputs.dtype.name}."
            )
        if self._settings.is_string or inputs.dtype == tf.int64:
            return inputs
        return tf.cast(inputs, tf.int64)

    def compute_output_shape(self, input_shape):
        return input_shape

    def compute_output_spec(self, inputs, training=None):
        is_ragged, is_sparse = (getattr(inputs, kind, False) for kind in ("ragged", "sparse"))
        return _compat.symbolic_output(inputs.shape, "int64", is_ragged, is_sparse)

    def note_table(self, layer, field, num_rows):
        """Notes that a layer looks up what this returns, and checks that it has enough rows."""
        if num_rows < self.capacity:
            name = layer.name if field is None else f"{layer.name}/{field}"
            raise ValueError(
                f"{self._user} gives rows up to {self.capacity}, its `capacity`, and '{name}' "
                f"behind it has {num_rows}: make them the same."
            )
        self._own.tables_behind[id(layer), field] = weakref.ref(layer)

    def _words_of(self, ids, argument):
        """Returns the words of ids that a user gives, int64 `[num, num_words]`."""
        if self._settings.is_string:
            ids = [one.encode() if isinstance(one, str) else one for one in ids]
            is_good = all(isinstance(one, bytes) for one in ids)
            longest = 8 * self._settings.num_words - 1
            if not is_good or any(len(one) > longest for one in ids):
                raise ValueError(
                    f"`{argument}` of {self._user} must be strings of at most {longest} bytes."
                )
            values = tf.constant(ids, tf.string, shape=[len(ids)])
        else:
            values = np.asarray(ids)
            if values.size and (values.dtype.kind not in "iu" or values.ndim != 1):
                raise ValueError(f"`{argument}` of {self._user} must be integers, got {ids!r}.")
            values = tf.constant(values.astype(np.int64).reshape(-1))
        with tf.init_scope():
            return encoded_ids(self._settings, values).numpy()

    def ids(self):
        """Returns the ids that have a row now, and their rows.

        Returns:
            Pair of ids, an int64 array `[num]` or a list of bytes, and their rows, an int64 array
            `[num]`, ascending.
        """
        self._check_built()
        words, rows, _ = self._entries()
        return decoded_ids(self._settings, words), rows

    def _entries(self):
        """Returns the words of ids that have a row, their rows, ascending, and `last_seen`."""
        parts = []
        for found, start in zip(self._shards(), self._own.starts):
            seen = found["last_seen"].numpy()
            rows = np.flatnonzero(seen)
            parts.append((tf.gather(found["row_ids"], rows).numpy(), rows + start, seen[rows]))
        return [np.concatenate(one) for one in zip(*parts)]

    def set_ids(self, ids, rows=None):
        """Gives ids rows, and takes all others'; what the tables behind have learned stays.

        Args:
            ids: Distinct ids, integers or strings `[num]`.
            rows: Their rows, distinct integers `[num]` above those of padding and unknown ids.
                None: the first ones, in order.

        Raises:
            ValueError: For ids or rows that are not distinct, or rows that are none.
        """
        self.build()
        words = self._words_of(ids, "ids")
        first = self._settings.first_row
        if rows is None:
            rows = self._first_rows(words)
        rows = np.asarray(rows, np.int64)
        is_padding = (words == np.array(self._settings.padding or [0])).all(axis=1)
        if self._settings.padding and is_padding.any():
            raise ValueError(f"`ids` of {self._user} have its `padding_id`, which has row 0.")
        if rows.shape != (len(words),) or len(np.unique(rows)) != len(rows):
            raise ValueError(f"`rows` of {self._user} must be distinct, one for each id.")
        if len(rows) and not first <= rows.min() <= rows.max() < self.capacity:
            raise ValueError(
                f"`rows` of {self._user} must be in [{first}, {self.capacity}), got {rows.min()} "
                f"to {rows.max()}."
            )
        keys = words[:, 0] if words.shape[1] == 1 else words.view(f"V{8 * words.shape[1]}")[:, 0]
        if len(np.unique(keys)) != len(words):
            raise ValueError(f"`ids` of {self._user} must be distinct.")
        self._set_words(words, rows)

    def _first_rows(self, words):
        shards = vocabulary_shards.shards_of(words, self._num_shards)
        rows = np.zeros(len(words), np.int64)
        for shard, start in enumerate(self._own.starts[:-1]):
            places = np.flatnonzero(shards == shard)
            rows[places] = start + self._settings.first_row + np.arange(len(places))
        return rows

    def _set_words(self, words, rows):
        shards = vocabulary_shards.shards_of(words, self._num_shards)
        starts = np.array(self._own.starts)
        firsts = starts[shards] + self._settings.first_row
        if not np.all((firsts <= rows) & (rows < starts[shards + 1])):
            raise ValueError(
                f"{self._user} is on {self._num_shards} parameter servers, each of which has a "
                "part of the ids and of the rows, and these ids have rows elsewhere: they are of "
                "one machine or of another number of servers, or more than a server has rows for. "
                "Start without ids, or raise `capacity`."
            )
        for shard, start, end in zip(range(self._num_shards), starts, starts[1:]):
            step = counter(self._variables(shard)["counters"].numpy(), "step")
            its = shards == shard
            arrays = with_ids(self._settings, end - start, words[its], rows[its] - start, step)
            self._assign(arrays, shard)

    def _assign(self, arrays, shard=0):
        arrays = dict(arrays)
        for name in ("changed_index", "changed_ids"):
            arrays[name] = np.full_like(arrays[name], -1)  # a delta has all of it
        for name in ("index_publication", "ids_publication"):
            arrays.pop(name)
        for name, value in arrays.items():
            self._state_of(shard)[name].assign(value)

    def save_ids(self, path):
        """Writes the ids that have a row, and their rows, to an `.npz` file: `ids` and `rows`."""
        ids, rows = self.ids()
        if self._settings.is_string:
            ids = np.array(ids, f"S{8 * self._settings.num_words}")
            if [*ids] != self.ids()[0]:
                raise ValueError(
                    f"{self._user} has ids that end in NUL, which NumPy's files cannot hold."
                )
        np.savez(path, ids=ids, rows=rows)

    def load_ids(self, path):
        """Gives ids the rows that a file of `save_ids` says: `set_ids` of what is in it."""
        with np.load(path, allow_pickle=False) as file:
            ids, rows = file["ids"], file["rows"]
        self.set_ids([*map(bytes, ids)] if self._settings.is_string else ids, rows)

    def stats(self):
        """Returns `VocabularyStats`."""
        self._check_built()
        of_shards = np.stack([found["counters"].numpy() for found in self._shards()])
        counters = of_shards.sum(axis=0)
        counts = {
            name: counter(counters, name)
            for name in schema.VOCABULARY_COUNTERS
            if name in VocabularyStats.__annotations__
        }
        num_others = counts["num_known_lookups"] + counts["num_padding_lookups"]
        return VocabularyStats(
            capacity=self.capacity,
            num_ids=counter(counters, "num_given") - counter(counters, "num_free"),
            num_steps=counter(of_shards.max(axis=0), "step"),
            num_oov_lookups=counts["num_lookups"] - num_others,
            **counts,
        )

    def grow(self, capacity, optimizer=None):
        """Raises `capacity`, and gives the tables behind it as many rows.

        Ids keep their rows, and tables what they have learned: `slipstream.resize` says how, and
        what has to be done after it: compile the model again. Tables are those that were looked up
        in training.

        Args:
            capacity: Rows from now on.
            optimizer: The `SlipstreamOptimizer` that trains the tables, or one around it. None:
                tables are left as they are; resize them yourself.

        Raises:
            ValueError: For a smaller capacity, or as `resize`.
        """
        check_dim("capacity", capacity)
        if capacity < self.capacity:
            raise ValueError(
                f"`capacity` of {self._user} can only be raised from {self.capacity}, got "
                f"{capacity}."
            )
        if capacity == self.capacity:
            return
        is_divided = self._own.is_on_servers or self.built and self._is_replicated()
        if tf.distribute.has_strategy() or is_divided:
            raise ValueError(
                f"{self._user} cannot grow on several replicas or on parameter servers. Save the "
                "model, load it without a strategy, let it grow and save it."
            )
        if optimizer is not None:
            for (_, field), reference in [*self._own.tables_behind.items()]:
                layer = reference()
                if layer is not None:
                    resize(layer, optimizer, capacity if field is None else {field: capacity})
        if self.built:
            arrays = {name: one.numpy() for name, one in self._variables().items()}
            self._replace(capacity, grown(self._settings, arrays, capacity))
        self.capacity, self._own.starts = capacity, (0, capacity)

    def _is_replicated(self):
        return isinstance(self._variables()["index"], tf.distribute.DistributedValues)

    def _replace(self, capacity, arrays):
        """Puts variables of another size in the place of those that there are."""
        old = self._state
        shapes = self._settings.shapes(capacity)
        for name, (shape, dtype) in shapes.items():
            if tuple(old[name].shape) != shape:
                with variables.rebuilding(self, old[name]):
                    self._add_variable(name, shape, dtype)
                variables.replace_in_layer(self, old[name], self._state[name])
            self._state[name].assign(arrays[name])
        self._register()

    def maps(self):
        """Returns what of it is served and changes by rows, as `TableState`s: for deltas."""
        if not self.built:
            return []
        return [
            TableState(
                name=f"{self.name}/{served}" if shard == 0 else f"{self.name}/{served}_{shard}",
                table=found[served],
                slots=(),
                last_steps=None,
                changed_rows=found[f"changed_{part}"],
                counters=found[f"{part}_publication"],
            )
            for shard, found in enumerate(self._shards())
            for served, part in zip(SERVED, ("index", "ids"), strict=True)
        ]

    def _check_built(self):
        if not self.built:
            raise ValueError(f"{self._user} is not built: call it or its model once.")

    def save_own_variables(self, store):
        if self._num_shards == 1:
            super().save_own_variables(store)
            return
        # As from a machine that has all of it; what is not known of it there begins anew.
        words, rows, seen = self._entries()
        arrays = with_ids(self._settings, self.capacity, words, rows, self.stats().num_steps)
        arrays["last_seen"][rows] = seen
        for place, name in enumerate(NAMES):
            store[str(place)] = arrays[name]

    def load_own_variables(self, store):
        keys = [str(i) for i in range(len(NAMES))]
        is_ours = self.built and all(key in store.keys() for key in keys)
        if is_ours and store[str(NAMES.index("last_seen"))].dtype != np.int64:
            raise ValueError(
                f"The file has {self._user} in the form of an older release. Load it there, write "
                "its ids by `save_ids`, and load these here by `load_ids`."
            )
        if is_ours and self._num_shards > 1:
            words, seen = (np.array(store[str(NAMES.index(n))]) for n in ("row_ids", "last_seen"))
            if words.shape != (self.capacity, self._settings.num_words):
                raise ValueError(
                    f"The file has a vocabulary of shape {words.shape} for {self._user}, which has "
                    f"{(self.capacity, self._settings.num_words)}, and on parameter servers must "
                    "have the same."
                )
            rows = np.flatnonzero(seen)
            self._set_words(words[rows], rows)
            return
        if not is_ours or tuple(store["1"].shape) == (self.capacity, self._settings.num_words):
            super().load_own_variables(store)
            return
        old = {name: np.array(store[key]) for name, key in zip(NAMES, keys, strict=True)}
        num_rows, *words = old["row_ids"].shape
        if num_rows > self.capacity or words != [self._settings.num_words]:
            raise ValueError(
                f"The file has a vocabulary of shape {old['row_ids'].shape} for {self._user}, "
                f"which has {(self.capacity, self._settings.num_words)}."
            )
        self._assign(grown(self._settings, old, self.capacity))

    def get_config(self):
        return super().get_config() | {
            "capacity": self.capacity,
            "admit_after": self.admit_after,
            "forget_after": self.forget_after,
            "num_oov": self.num_oov,
            "dtype": self.id_dtype,
            "padding_id": self.padding_id,
            "max_id_bytes": self.max_id_bytes,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config.pop("autocast", None)
        return cls(**config)


def _flat(ids):
    if kind(ids) is tf.RaggedTensor:
        return ids.flat_values
    return ids.values if kind(ids) is tf.SparseTensor else ids


def _like(ids, rows):
    """Returns rows in the form of ids."""
    if kind(ids) is tf.RaggedTensor:
        return ids.with_flat_values(rows)
    if kind(ids) is tf.SparseTensor:
        return tf.SparseTensor(ids.indices, rows, ids.dense_shape)
    return tf.ensure_shape(rows, ids.shape)
