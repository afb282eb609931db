"""The optimizers' rules for one table: hyperparameters, slots and the update of the rows of a step.

Plain values and equations; no Keras class and no variable belongs here. To add one: a file with an
`UpdateRule`, its entry in `rules_by_optimizer`, its struct in `custom_ops/kernels/update_rules.h`,
and its reference in `tests/reference.py`.
"""

from tf_slipstream.update_rules.adagrad import Adagrad
from tf_slipstream.update_rules.adam import Adam
from tf_slipstream.update_rules.ftrl import Ftrl
from tf_slipstream.update_rules.rmsprop import RmsProp
from tf_slipstream.update_rules.row_wise_adagrad import RowWiseAdagrad
from tf_slipstream.update_rules.sgd import Momentum, Sgd, sgd_rule
from tf_slipstream.update_rules.update_rule import Slot, UpdateRule

__all__ = [
    "Adagrad",
    "Adam",
    "Ftrl",
    "Momentum",
    "RmsProp",
    "RowWiseAdagrad",
    "Sgd",
    "Slot",
    "UpdateRule",
    "rules_by_optimizer",
]


def rules_by_optimizer():
    """Returns, by a Keras optimizer's class name, what makes its `UpdateRule`."""
    return {
        "SGD": sgd_rule,
        "Adagrad": Adagrad.from_optimizer,
        "RowWiseAdagrad": RowWiseAdagrad.from_optimizer,
        "Adam": Adam.from_optimizer,
        "AdamW": Adam.from_optimizer,
        "RMSprop": RmsProp.from_optimizer,
        "Ftrl": Ftrl.from_optimizer,
    }
