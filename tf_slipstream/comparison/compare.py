"""From a folder of runs to what may be said of them."""

import json
import pathlib
import zipfile

import numpy as np

from tf_slipstream.comparison import statistics

_DAYS_A_MONTH = 30
# A group with fewer of either label is only counted.
_MIN_OF_GROUP = 20
_MOST_GROUPS = 50


class RunsError(ValueError):
    """Runs that cannot be compared."""


def load_runs(folder):
    """Returns saved runs: a dict from a configuration's name to a dict by seed.

    Args:
        folder: That of an `Experiment`.

    Raises:
        RunsError: If there are none, one is damaged, or they are of different test examples.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise RunsError(
            f"There is no folder {folder}; expected one of saved runs. Save some by "
            f"slipstream.Experiment({str(folder)!r}), or train them by --train."
        )
    paths = sorted(folder.glob("*.run.npz"))
    if not paths:
        raise RunsError(
            f"{folder} has no runs. Save some by slipstream.Experiment({str(folder)!r})."
        )
    runs, first = {}, None
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as file:
                run = {name: file[name] for name in file.files}
            run |= json.loads(str(run.pop("about")))
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise RunsError(f"{path} is damaged ({error}). Save that run anew.") from error
        run["labels"] = run["labels"] > 0
        first = first or (path, run["labels"])
        if not np.array_equal(first[1], run["labels"]):
            raise RunsError(
                f"{path} and {first[0]} are of different test examples. Give all runs the same, in "
                "the same order."
            )
        runs.setdefault(run["name"], {})[run["seed"]] = run
    return runs


def compare(runs, baseline, margin=0.001, by=None, price=None, runs_per_day=None, cost_once=None):
    """Compares configurations with a baseline.

    Args:
        runs: What `load_runs` gives.
        baseline: Name of a configuration.
        margin: Loss of AUC that is none yet.
        by: Name of a column of groups, or None.
        price: Money for an hour of training, or None.
        runs_per_day: How often one trains, or None.
        cost_once: Money that a change costs, or None.

    Returns:
        A dict, docs/guide/deciding.md.

    Raises:
        RunsError: If there is no such configuration or column, or no seed in common.
    """
    if baseline not in runs:
        raise RunsError(
            f"There is no configuration {baseline!r}; there are: {', '.join(sorted(runs))}. Change "
            "--baseline."
        )
    if len(runs) < 2:
        raise RunsError(f"There is nothing to compare with {baseline!r}: save runs of another.")
    labels = next(iter(runs[baseline].values()))["labels"]
    money = {"price": price, "runs_per_day": runs_per_day, "cost_once": cost_once}
    found = {
        "baseline": baseline,
        "margin": margin,
        "num_examples": len(labels),
        "base_rate": float(labels.mean()),
        "by": by,
        "configurations": {name: _summary(by_seed) for name, by_seed in runs.items()},
        "comparisons": {},
    }
    for name, by_seed in runs.items():
        if name == baseline:
            continue
        seeds = sorted(by_seed.keys() & runs[baseline].keys())
        if not seeds:
            raise RunsError(f"{name!r} and {baseline!r} have no seed in common. Train some.")
        pairs = [(runs[baseline][seed], by_seed[seed]) for seed in seeds]
        found["comparisons"][name] = _comparison(labels, pairs, margin, by, money)
    return found


def _summary(by_seed):
    every = [statistics.measures(run["labels"], run["scores"]) for run in by_seed.values()]
    summary = {name: float(np.mean([one[name] for one in every])) for name in every[0]}
    for name in ("seconds", "peak_bytes", "joules", "num_bytes"):
        values = [run[name] for run in by_seed.values() if run[name] is not None]
        summary[name] = float(np.mean(values)) if values else None
    return summary | {"seeds": sorted(by_seed)}


def _comparison(labels, pairs, margin, by, money):
    scores = [(one["scores"], other["scores"]) for one, other in pairs]
    change = statistics.auc_change(labels, scores)
    found = {
        "auc": change,
        "log_loss": statistics.loss_change(labels, scores),
        "speed": _speed(pairs),
        **_verdict(change, margin),
    }
    if by is not None:
        found["groups"] = _groups(labels, pairs, by, margin)
    if money["price"] is not None or money["runs_per_day"] is not None:
        found["return"] = _return(pairs, **money)
    return found


def _verdict(change, margin):
    """Returns `verdict` and `advice`."""
    if change["num_seeds"] < 2:
        advice = "one seed says nothing of how seeds scatter: train at least 3"
        return {"verdict": "not enough data", "advice": advice}
    if change["low"] > 0:
        return {"verdict": "better", "advice": "take it"}
    if change["low"] > -margin:
        return {"verdict": "no worse", "advice": f"within a margin of {margin:g} of AUC"}
    if change["high"] < 0:
        return {"verdict": "worse", "advice": "keep the baseline, or a more careful policy"}
    needed = statistics.seeds_needed(change, margin)
    if needed is None:
        advice = "more test examples, or a wider margin: more seeds alone would not tell"
    else:
        more = max(1, needed - change["num_seeds"])
        advice = f"about {more} more seed(s) would tell, {needed} in all"
    return {"verdict": "not enough data", "advice": advice}


def _speed(pairs):
    ratios = [
        one["seconds"] / other["seconds"]
        for one, other in pairs
        if one["seconds"] and other["seconds"]
    ]
    return float(np.exp(np.mean(np.log(ratios)))) if ratios else None


def _groups(labels, pairs, by, margin):
    """Returns a list of dicts, one for each group, the largest first."""
    column = f"group_{by}"
    first = pairs[0][0]
    if column not in first:
        known = sorted(name.removeprefix("group_") for name in first if name.startswith("group_"))
        raise RunsError(
            f"The runs have no column {by!r}; they have: {', '.join(known) or 'none'}. Give "
            "`groups` to `Run.save`, or change --by."
        )
    values = first[column]
    names, counts = np.unique(values, return_counts=True)
    groups = []
    for name in names[np.argsort(-counts, kind="stable")][:_MOST_GROUPS]:
        mine = values == name
        group = {"name": str(name), "num_examples": int(mine.sum())}
        waits = [other["waits"][mine].mean() for _, other in pairs if "waits" in other]
        group["waits"] = float(np.mean(waits)) if waits else None
        some = labels[mine]
        if min(some.sum(), (~some).sum()) >= _MIN_OF_GROUP:
            scores = [(one["scores"][mine], other["scores"][mine]) for one, other in pairs]
            group["auc"] = statistics.auc_change(some, scores)
            group["log_loss"] = statistics.loss_change(some, scores)
            group["verdict"] = _verdict(group["auc"], margin)["verdict"]
        else:
            group["verdict"] = "too few examples"
        groups.append(group)
    return groups


def _return(pairs, price, runs_per_day, cost_once):
    """Returns what the time that is saved is worth."""
    saved = [
        one["seconds"] - other["seconds"]
        for one, other in pairs
        if one["seconds"] is not None and other["seconds"] is not None
    ]
    if not saved:
        return None
    hours = float(np.mean(saved)) / 3600 * (runs_per_day or 1) * _DAYS_A_MONTH
    found = {"hours_a_month": hours, "money_a_month": None, "break_even_months": None}
    if price is not None:
        found["money_a_month"] = hours * price
        if cost_once is not None and hours * price > 0:
            found["break_even_months"] = cost_once / (hours * price)
    return found
