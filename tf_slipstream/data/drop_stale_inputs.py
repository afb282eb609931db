"""Leaves examples out of training whose lookups are stale."""

import dataclasses
import math

import tensorflow as tf

from tf_slipstream import _keras
from tf_slipstream.data.batch_joining import (
    as_written,
    examples_where,
    join_batches,
    num_examples_of,
)
from tf_slipstream.data.example_choice import choose, stale_share, weighted
from tf_slipstream.data.example_lookups import lookups_finder
from tf_slipstream.optimizer import find_slipstream_optimizer


def drop_stale_inputs(
    dataset,
    optimizer_or_model,
    min_stale=1.0,
    keep_fraction=0.0,
    ids=None,
    weight_kept=False,
    max_reads=16,
    seed=None,
):
    """Leaves out examples most of whose lookups are stale, and fills the batches with others.

    An example is *stale* if at least the share `min_stale` of its lookups is, in the step that is
    next when its batch is read. Reading ahead, by `prefetch` or by what tf.data adds to a pipeline
    itself, makes that some steps early. Nothing is dropped before the policies let rows sleep.

    Whatever is stale, each batch that is read gives at least a `max_reads`-th of its examples, so
    that one comes out for `max_reads` that are read, or sooner: fewer than twice the examples of a
    batch are dropped in a row. A finite dataset ends, with fewer batches than before.

    With `weight_kept` a stale example that is kept has the inverse of its chance to be kept as its
    sample weight: `1 / keep_fraction`, or less where `max_reads` kept more. The gradients' sum over
    a pass is then that of all examples in expectation; a batch stands for more than its size.

    Use it after `cache`, `shuffle` and `repeat`: a `cache` that follows would keep the choices of
    the first pass. Passes get shorter, and Keras takes the first epoch's length for that of all
    (tf_keras ends training at a shorter one): more than one epoch needs `repeat` and
    `steps_per_epoch`.

    Args:
        dataset: Batched `tf.data.Dataset` of `(features, label)`, `(features, label, weight)`, or
            features alone. Its tensors may be dense, ragged or sparse, with the examples along
            their first axis; those of several batches are joined, so that the other axes of dense
            ones must agree. Where its batches have a static size, so have the results, and a last
            one that is smaller is left out.
        optimizer_or_model: A model compiled with `SlipstreamOptimizer`, or that optimizer, already
            built and with `ids`.
        min_stale: Share of an example's lookups, in (0, 1].
        keep_fraction: Share of the stale examples of each batch that is kept, in [0, 1], at random.
        ids: What the examples look up. None: found in the graph of a functional or sequential
            model, where padding under `mask_zero` is left out. Else a dict from the name (or, in a
            tuple, the place) of a feature to a table's name; or a function from features to a dict
            from a table's name to its ids, or a list of such ids. Ids are dense, ragged or sparse.
        weight_kept: Whether to weight the stale examples that are kept; needs a label, and a
            `keep_fraction` above 0.
        max_reads: Batches that are read for one, at most; at least 1.
        seed: Integer, for the same choices in every run; None: different ones.

    Returns:
        A `tf.data.Dataset` with the batch size of the first batch that is read, or of a larger one
        since; the last may be smaller. With `weight_kept`, of `(features, label, weight)`.

    Raises:
        ValueError: For arguments that are out of range or do not fit each other or the dataset; if
            lookups cannot be found in the model's graph; for tables on a GPU, which `tf.data`
            cannot read.

    Example:

    ```python
    live = slipstream.data.drop_stale_inputs(
        dataset.repeat(), model, min_stale=0.75, keep_fraction=0.25, weight_kept=True)
    model.fit(live.prefetch(1), steps_per_epoch=1000, epochs=3)
    ```
    """
    _check(0 < _number(min_stale) <= 1, "min_stale", "a number in (0, 1]", min_stale)
    _check(0 <= _number(keep_fraction) <= 1, "keep_fraction", "a number in [0, 1]", keep_fraction)
    is_count = isinstance(max_reads, int) and not isinstance(max_reads, bool) and max_reads >= 1
    _check(is_count, "max_reads", "an integer >= 1", max_reads)
    if weight_kept and keep_fraction == 0:
        raise ValueError("`weight_kept` needs a `keep_fraction` above 0, got 0: none is kept.")
    _check_dataset(dataset, weight_kept)
    optimizer = _built_optimizer(optimizer_or_model)
    tables = {name: _readable(state, optimizer) for name, state in optimizer.tables.items()}
    find_lookups = lookups_finder(ids, optimizer_or_model, tables)
    iterations = _local(_keras.tf_variable(optimizer.iterations), optimizer)
    is_tuple = isinstance(dataset.element_spec, tuple)

    @as_written
    def select(element, random):
        features, *rest = element if is_tuple else (element,)
        rest = [one for one in rest if one is not None]
        num_examples = num_examples_of(tf.nest.flatten(features)[0])
        step = tf.cast(iterations.read_value(), tf.int64) + 1
        share = stale_share(find_lookups(features), tables, step, num_examples)
        # The slack is for shares such as 0.7, which floats do not hold.
        is_stale = share >= min_stale - 1e-6
        is_kept, weights = choose(is_stale, keep_fraction, max_reads, random)
        if weight_kept:
            rest = [rest[0], weighted(weights, *rest)]
        element = (features, *rest) if is_tuple else features
        return num_examples, tf.nest.map_structure(lambda x: examples_where(x, is_kept), element)

    random = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
    chosen = tf.data.Dataset.zip(dataset, random).map(select)
    joined = join_batches(chosen, _static_size(dataset.element_spec))
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        infinite = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
        joined = joined.apply(infinite)
    return joined


def _check(is_good, name, expected, value):
    if not is_good:
        raise ValueError(f"`{name}` must be {expected}, got {value!r}.")


def _number(value):
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number else math.nan


def _check_dataset(dataset, weight_kept):
    if not isinstance(dataset, tf.data.Dataset):
        raise ValueError(f"`dataset` must be a tf.data.Dataset, got {type(dataset).__name__}.")
    spec = dataset.element_spec
    for one in tf.nest.flatten(spec):
        if isinstance(one, tf.NoneTensorSpec):
            continue
        kinds = (tf.TensorSpec, tf.RaggedTensorSpec, tf.SparseTensorSpec)
        if not isinstance(one, kinds) or one.shape.rank is None:
            raise ValueError(
                "`dataset` must have dense, ragged or sparse tensors of known rank, the examples "
                f"along their first axis; got {one}. `tf.ensure_shape` in a `map` makes it known."
            )
        if one.shape.rank == 0:
            raise ValueError(f"`dataset` must be batched, got {spec}. Call `batch` before.")
    if isinstance(spec, tuple) and not 1 <= len(spec) <= 3:
        raise ValueError(
            "`dataset` must be of features, (features, label) or (features, label, weight), got a "
            f"tuple of {len(spec)}. Several features are a tuple or dict of their own."
        )
    if weight_kept and not (isinstance(spec, tuple) and len(spec) > 1):
        raise ValueError(
            f"`weight_kept` needs a dataset of (features, label), got {spec}: Keras takes weights "
            "after a label only."
        )


def _static_size(spec):
    """Returns the size of every batch where the spec has it, else None."""
    leaves = tf.nest.flatten(spec)
    sizes = {one.shape[0] for one in leaves if not isinstance(one, tf.NoneTensorSpec)}
    return sizes.pop() if len(sizes) == 1 else None


def _built_optimizer(optimizer_or_model):
    optimizer = find_slipstream_optimizer(optimizer_or_model, "drop_stale_inputs")
    outer = getattr(optimizer_or_model, "optimizer", None)
    if not optimizer.tables and outer is not None and optimizer_or_model.trainable_variables:
        outer.build(optimizer_or_model.trainable_variables)
    if not optimizer.tables:
        raise ValueError(
            "drop_stale_inputs found no table of a SlipstreamEmbedding in the optimizer. Give it "
            "the compiled model, after calling it on a batch if it is not functional."
        )
    return optimizer


def _local(variable, optimizer):
    """Returns this host's copy of a variable, which may be mirrored."""
    strategy = optimizer._distribution_strategy
    return variable if strategy is None else strategy.experimental_local_results(variable)[0]


def _readable(state, optimizer):
    """Returns a `TableState` whose variables a `tf.data` function can read."""
    if "GPU" in state.table.device:
        raise ValueError(
            f"Table '{state.name}' is on {state.table.device}, where tf.data, which runs on the "
            "CPU, cannot read its state. Place the model on the CPU."
        )
    if state.policy is None:
        return state
    names = ("row_states", "pool_ints", "policy_state")
    return dataclasses.replace(
        state, **{name: _local(getattr(state, name), optimizer) for name in names}
    )
