"""From what was counted to what to do: forecast of bytes, time and memory, and a verdict."""

import dataclasses
import shlex

from tf_slipstream.analysis import costs

# Gains of a step's time that are worth a change, and worth a try.
_GO, _TRY = 1.15, 1.04
# What docs/evidence/sleeping_rows.md has as costing no quality; `aggressive` in long runs alone.
_LONG_RUN = 5_000
_OPTIMIZERS = {
    "sgd": "keras.optimizers.SGD()",
    "momentum": "keras.optimizers.SGD(momentum=0.9)",
    "adagrad": "keras.optimizers.Adagrad()",
    "rmsprop": "keras.optimizers.RMSprop()",
    "adam": "keras.optimizers.Adam()",
    "ftrl": "keras.optimizers.Ftrl()",
}
_STOCK_HURTS, _STOCK_MAY_HURT = 64e6, 4e6


@dataclasses.dataclass(frozen=True)
class Setting:
    """How one means to train.

    Attributes:
        workers: That train at once, each with a batch of its own.
        bandwidth: Bits a second of a worker's link.
        dim: Length of a row.
        optimizer: A key of `costs.NUM_SLOTS`.
        compute_ms: Milliseconds of a step's dense part; 0 where unknown.
        popular_share: Of the policies.
    """

    workers: int = 1
    bandwidth: float = 10e9
    dim: int = 16
    optimizer: str = "adagrad"
    compute_ms: float = 0.0
    popular_share: float = 0.04


def conclude(found, setting, path):
    """Returns what follows from a survey: a dict with `costs`, `inputs`, `verdict` and `setting`.

    Args:
        found: What `Survey.run` returned.
        setting: `Setting`.
        path: The log, for the next command.
    """
    fields = found["fields"]
    num_rows = [field["distinct_ids"] for field in fields]
    num_lookups = sum(field["num_lookups"] for field in fields) / found["num_steps"]
    num_updates = sum(field["num_row_updates"] for field in fields) / found["num_steps"]
    plans = {"none": (costs.bytes_per_step(num_lookups, num_updates, setting.dim), 0.0)}
    if setting.workers > 1:
        stock = costs.stock_bytes_per_step(num_lookups, num_updates, setting.dim)
        plans = {"stock": (stock, 0.0), **plans}
    for name, shares in found["policies"].items():
        deferred = shares["row_updates_deferred"] + shares["row_updates_skipped"]
        plans[name] = (
            costs.bytes_per_step(num_lookups, num_updates, setting.dim, deferred),
            deferred,
        )
    has_network = setting.workers > 1
    rows = {}
    for name, (num_bytes, _) in plans.items():
        seconds = costs.seconds_per_step(
            num_bytes if has_network else 0.0,
            num_updates,
            setting.compute_ms / 1e3,
            setting.bandwidth,
        )
        rows[name] = {"bytes": num_bytes if has_network else 0.0, "ms": 1e3 * seconds}
    for row in rows.values():
        row["speed"] = rows["none"]["ms"] / row["ms"]
    memory = costs.memory(
        num_rows, setting.dim, setting.optimizer, setting.popular_share, has_network
    )
    inputs = costs.choosing_inputs(found["base_rate"])
    verdict = _verdict(found, setting, rows, memory, inputs, path)
    return {
        "setting": dataclasses.asdict(setting),
        "costs": {"steps": rows, "memory": memory},
        "inputs": inputs,
        "verdict": verdict,
    }


def _verdict(found, setting, rows, memory, inputs, path):
    why, policy = [], None
    names = [name for name in found["policies"] if name != "aggressive"]
    if found["num_steps"] / found["sample"] >= _LONG_RUN and "aggressive" in found["policies"]:
        names.append("aggressive")
    if setting.workers > 1 and names:
        best = max(names, key=lambda name: rows[name]["speed"])
        gain, shares = rows[best]["speed"], found["policies"][best]
        answer = "go" if gain >= _GO else "try" if gain >= _TRY else "not worth it"
        share = shares["row_updates_deferred"]
        why.append(
            f"with {best!r} {shares['lookups_deferred']:.0%} of lookups and {share:.0%} of row "
            f"updates wait, and a step would take 1/{gain:.2f} of the time"
        )
        if answer == "not worth it":
            why.append(_why_little(found, setting, rows, share))
        else:
            policy = best
        if setting.compute_ms == 0:
            why.append("the dense part's time is not in it: give --compute-ms")
    else:
        tables = memory["tables"] + memory["slots"]
        size = f"tables and slots take {tables / 1e6:,.0f} MB"
        if tables >= _STOCK_HURTS:
            answer = "go"
            why.append(f"{size}, and stock Keras reads and writes all of it in every step")
        elif tables >= _STOCK_MAY_HURT:
            answer = "try"
            why.append(f"{size}: stock Keras touches all of it in every step; measure it")
        else:
            answer = "not worth it"
            why.append(f"{size}: too little to gain by touching less of it")
        why.append(
            "no policy: on one machine rows that sleep make a step no faster; what they save is "
            "what need not cross a network (--workers)"
        )
    moving = [
        f["name"] for f in found["fields"] if f["movement"]["kind"] in ("trending", "seasonal")
    ]
    if moving:
        why.append(f"what is hot changes in {_listed(moving)}: keep `refresh_every` and `max_age`")
    if inputs["kept"] < 1:
        why.append(f"{found['base_rate']:.1%} are positive: training on half of the inputs may do")
    if found["sample"] < 1:
        why.append("a sample is a shorter run, in which fewer rows sleep: a lower bound")
    return {
        "answer": answer,
        "why": why,
        "policy": policy,
        "next": _next(answer, policy, setting, path),
    }


def _why_little(found, setting, rows, share):
    if share < 0.1:
        return (
            f"rows see too few batches in {found['num_steps']:,} steps: a row sleeps after 100 "
            "updates at the earliest"
        )
    if setting.compute_ms and rows["none"]["ms"] < 1.3 * setting.compute_ms:
        return "the dense part takes most of a step's time, not the network"
    return "the network is not what a step waits for"


def _next(answer, policy, setting, path):
    if answer == "not worth it" and setting.workers == 1:
        return f"tf-slipstream analyze {shlex.quote(path)} --workers 4 --bandwidth 1"
    argument = f', policy="{policy}"' if policy else ""
    return f"slipstream.SlipstreamOptimizer({_OPTIMIZERS[setting.optimizer]}{argument})"


def _listed(names):
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
