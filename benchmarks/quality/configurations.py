"""What is compared: a policy, or a control that saves as much in a simpler way."""

import dataclasses

from tf_slipstream import StalenessPolicy
from tf_slipstream.policy import PRESETS

CONTROLS = ("random_rows", "frozen_after", "random_inputs", "fixed")
# Ways of choosing inputs before the forward pass: those of `slipstream.InputSelector`, a control.
CHOICES = ("contribution", "negatives", "random", "stale_inputs")
# Whose embeddings and optimizer are Keras's own.
STOCK = ("stock", "dense")
HELP = """
A configuration is one of
  stock                     keras.layers.Embedding and Keras's optimizer, as they are
  dense                     the same, with the gradients of repeated ids summed before the optimizer
  none                      ours, no skipping
  default, balanced, ...    a preset
  balanced,window=16        a preset with changes, or changes alone: field=value,...
  auto,budget=0.001         the policy that tunes itself, with a budget and changes
  random_rows=0.3           each row of a step is left out with this probability
  frozen_after=300          a row is frozen for ever after so many updates
  fixed=8,min_updates=100   every popular row is updated once in 8 batches, whatever its drift
  random_inputs=0.3         this share of the examples is left out
  contribution=0.5          this share is chosen by its contribution, in full batches; or negatives=
                            (positives and a share of the negatives), random=, stale_inputs= (those
                            with the youngest row: that of the fewest lookups so far)
  contribution=0.5,wide     the same, with the pilot's log odds added to the model's; wide of all
                            inputs is contribution=1,wide
"""


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One way of training.

    Args:
        name: As it was given, for tables and plots.
        policy: `StalenessPolicy`, or None.
        random_rows: Probability with which a row is left out of a step.
        frozen_after: Updates after which a row is frozen for ever; 0: never.
        random_inputs: Share of the examples that is left out.
        stock: One of `STOCK`, or "" for ours.
        keep: Share of the examples that is chosen, by `method`; 0: none is left out.
        method: One of `CHOICES`.
        wide: Whether the pilot is part of the model.
    """

    name: str
    policy: StalenessPolicy | None = None
    random_rows: float = 0.0
    frozen_after: int = 0
    random_inputs: float = 0.0
    stock: str = ""
    keep: float = 0.0
    method: str = ""
    wide: bool = False

    def settings(self):
        """Returns all that decides about the result, the name not, as JSON takes it."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if value and name != "name"}

    @property
    def family(self):
        """What it is an example of: a control's name, "stock", "none", "defer" or "skip"."""
        if self.stock:
            return "stock"
        for control in (*CONTROLS, *CHOICES):
            if self.name.startswith(f"{control}="):
                return control
        return "none" if self.policy is None else self.policy.on_stale


def parse(text):
    """Returns the `Configuration` that a text stands for; see `HELP`.

    Raises:
        ValueError: If it stands for none.
    """
    first, *rest = text.split(",")
    key, _, value = first.partition("=")
    if first == "none" and not rest:
        return Configuration(text)
    if first in STOCK and not rest:
        return Configuration(text, stock=first)
    if key == "fixed":
        period = int(value)
        at_once = {"first_sleep": period, "max_sleep": period, "updates_per_sleep": 1}
        always = {"threshold": 1e9, "min_drift": 0}
        return Configuration(text, StalenessPolicy(**always | at_once | _changes(rest)))
    if key in CHOICES and rest in ([], ["wide"]):
        return Configuration(text, keep=float(value), method=key, wide=bool(rest))
    if key in CONTROLS and not rest:
        return Configuration(text, **{key: _value(value)})
    if first in (*PRESETS, "default"):
        preset = "conservative" if first == "default" else first
        more = ("budget",) if preset == "auto" else ()
        return Configuration(text, getattr(StalenessPolicy, preset)(**_changes(rest, more)))
    return Configuration(text, StalenessPolicy(**_changes([first, *rest])))


def _changes(texts, more=()):
    fields = {field.name for field in dataclasses.fields(StalenessPolicy)} | {*more}
    pairs = [text.split("=", 1) for text in texts]
    unknown = [pair[0] for pair in pairs if len(pair) < 2 or pair[0] not in fields]
    if unknown:
        raise ValueError(f"Expected field=value of StalenessPolicy, got {unknown}.{HELP}")
    return {name: _value(value) for name, value in pairs}


def _value(text):
    if text == "None":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
