"""Keras 3 and tf_keras behind the same names: all that knows which of them is in use.

As for `tf.keras`, it is Keras 3 unless TF_USE_LEGACY_KERAS=1 is set before TensorFlow is imported.

What differs is in `keras3` and `tf_keras`, which have the same functions; what is the same in both
but private to Keras, or about optimizers and configs of either, is in `common` and `wrapping`. No
other module uses a private name of Keras. Nothing here knows tables' state or rules.

To add something: a function of the same name and arguments in both modules, listed below; and for a
private name of Keras a test in `tests/contract` that it exists and does what we rely on.
"""

from tf_slipstream._compat.calls import is_training_step
from tf_slipstream._compat.common import (
    as_optimizer,
    check_dense_optimizer,
    constant_value,
    dataset_of,
    deserialize,
    has_schedule,
    learning_rate_at,
    legacy_hint,
    logits_behind,
    makes_its_numbers,
    new_dataset,
    num_batches_done,
    register_serializable,
    serialize,
    strategy_of,
    symbolic_output,
    uses_weight_decay,
    with_field_seed,
)
from tf_slipstream._compat.which import IS_KERAS_3, chosen, keras
from tf_slipstream._compat.wrapping import WrappingOptimizer

BaseOptimizer = chosen.BaseOptimizer
add_table = chosen.add_table
add_table_shards = chosen.add_table_shards
apply_to = chosen.apply_to
asks_for_shapes_alone = chosen.asks_for_shapes_alone
count_atomically = chosen.count_atomically
exported_variables = chosen.exported_variables
is_saving_traces = chosen.is_saving_traces
is_symbolic = chosen.is_symbolic
is_unsupported_dtype_policy = chosen.is_unsupported_dtype_policy
slot_name = chosen.slot_name
symbolic_mask = chosen.symbolic_mask
table_of = chosen.table_of
tf_variable = chosen.tf_variable
add_replicated = chosen.add_replicated
allow_mean_over_replicas = chosen.allow_mean_over_replicas
build_in_graph = chosen.build_in_graph
loss_of_function = chosen.loss_of_function
update_metrics = chosen.update_metrics
variables_of = chosen.variables_of
with_another_seed = chosen.with_another_seed

__all__ = [
    "IS_KERAS_3",
    "BaseOptimizer",
    "WrappingOptimizer",
    "allow_mean_over_replicas",
    "update_metrics",
    "logits_behind",
    "loss_of_function",
    "build_in_graph",
    "add_replicated",
    "add_table",
    "add_table_shards",
    "apply_to",
    "as_optimizer",
    "asks_for_shapes_alone",
    "check_dense_optimizer",
    "constant_value",
    "count_atomically",
    "dataset_of",
    "deserialize",
    "exported_variables",
    "has_schedule",
    "is_saving_traces",
    "is_symbolic",
    "is_training_step",
    "is_unsupported_dtype_policy",
    "keras",
    "learning_rate_at",
    "legacy_hint",
    "makes_its_numbers",
    "new_dataset",
    "num_batches_done",
    "register_serializable",
    "serialize",
    "slot_name",
    "strategy_of",
    "symbolic_mask",
    "symbolic_output",
    "table_of",
    "tf_variable",
    "uses_weight_decay",
    "variables_of",
    "with_another_seed",
    "with_field_seed",
]
