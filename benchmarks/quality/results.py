"""The file of results: one JSON line per run, found again by the run's settings."""

import collections
import json
import os

import numpy as np


def key_of(settings):
    """Returns what tells a run from others: its settings, the configuration's name aside."""
    return json.dumps(settings, sort_keys=True)


def load(path):
    """Returns, by key, the lines of a file of results; of a key's lines the last."""
    if not os.path.exists(path):
        return {}
    with open(path) as file:
        lines = [json.loads(line) for line in file if line.strip()]
    return {key_of(line["settings"]): line for line in lines}


def append(path, line):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")


def jobs(lines):
    """Groups lines by all settings but seed and configuration; failed runs are left out.

    Returns:
        Dict from a job's key to its lines: by configuration's key, by seed.
    """
    found = collections.defaultdict(lambda: collections.defaultdict(dict))
    for line in lines:
        if "failed" in line["result"]:
            continue
        settings = dict(line["settings"])
        seed, configuration = settings.pop("seed"), settings.pop("configuration")
        if "best_of" in settings:
            settings.pop("learning_rate")
        found[key_of(settings)][key_of(configuration)][seed] = line
    return found


def title_of(job):
    """Returns a job's settings in words."""
    settings = json.loads(job)
    name, optimizer = settings.pop("data"), settings.pop("optimizer")
    rest = ", ".join(f"{k} {v}" for k, v in settings.items() if v is not None)
    return f"{name}, {optimizer}: {rest}"


Comparison = collections.namedtuple(
    "Comparison",
    "name family num_seeds lookups_saved row_updates_saved values noise changes errors speed "
    "inputs_dropped",
)


def compare(configurations, measures, baseline="none"):
    """Compares configurations of a job with one of them, seed by seed.

    Args:
        configurations: By configuration's key, by seed, the lines.
        measures: Names of results.
        baseline: Name of that configuration.

    Returns:
        `Comparison`s in the order of the lines: means over the seeds; per measure its mean, its
        standard deviation over the seeds, its mean change against the baseline and that mean's
        standard error (None with fewer than two seeds in common).
    """
    plain = next((runs for runs in configurations.values() if _any(runs)["name"] == baseline), {})
    compared = []
    for runs in configurations.values():
        results = [line["result"] for line in runs.values()]
        common = [seed for seed in runs if seed in plain]
        values, noise, changes, errors = {}, {}, {}, {}
        for measure in measures:
            numbers = [result[measure] for result in results]
            values[measure], noise[measure] = np.mean(numbers), _deviation(numbers)
            pairs = [(runs[s]["result"][measure], plain[s]["result"][measure]) for s in common]
            differences = [one - other for one, other in pairs]
            changes[measure] = np.mean(differences) if common else None
            deviation = _deviation(differences)
            errors[measure] = None if deviation is None else deviation / len(common) ** 0.5
        mean = {
            name: np.mean([result[name] for result in results])
            for name in ("lookups_saved", "row_updates_saved", "examples_per_second")
        }
        mean |= {
            name: np.mean([result.get(name, 0.0) for result in results])
            for name in ("inputs_dropped",)
        }
        compared.append(
            Comparison(
                _any(runs)["name"],
                _any(runs)["family"],
                len(runs),
                mean["lookups_saved"],
                mean["row_updates_saved"],
                values,
                noise,
                changes,
                errors,
                mean["examples_per_second"],
                mean["inputs_dropped"],
            )
        )
    return compared


def _any(runs):
    return next(iter(runs.values()))


def _deviation(numbers):
    return float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None


def measures_of(configurations):
    """Returns the names of what was measured in all lines of a job."""
    names = ("auc", "log_loss", "recall_at_20", "calibration")
    lines = [line for runs in configurations.values() for line in runs.values()]
    return [name for name in names if all(name in line["result"] for line in lines)]


def summary(lines):
    """Returns tables of all jobs, in Markdown."""
    parts = []
    for job, configurations in jobs(lines).items():
        measures = measures_of(configurations)
        heads = ["configuration", "seeds", "lookups saved", "row updates saved", "inputs kept"]
        heads += ["time"]
        heads += [name for m in measures for name in (_words(m), "change")]
        compared = compare(configurations, measures)
        speed = next((one.speed for one in compared if one.name == "none"), None)
        rows = [_row(one, measures, speed) for one in compared]
        parts += [f"### {title_of(job)}", "", _line(heads), _line(["---"] * len(heads))]
        parts += [*map(_line, rows), "", _noise(compared, measures), ""]
    return "\n".join(parts)


def _row(one, measures, speed):
    cells = [f"`{one.name}`", str(one.num_seeds)]
    cells += [f"{one.lookups_saved:.1%}", f"{one.row_updates_saved:.1%}"]
    # Of the run without leaving anything out, in this process or another: of a quiet machine.
    cells += [f"{1 - one.inputs_dropped:.1%}", f"{speed / one.speed:.2f}" if speed else ""]
    for measure in measures:
        change, error = one.changes[measure], one.errors[measure]
        cells.append(f"{one.values[measure]:.5f}")
        text = "" if change is None else f"{change:+.5f}"
        cells.append(text if error is None else f"{text} ± {error:.5f}")
    return cells


def _noise(compared, measures):
    plain = [one for one in compared if one.name == "none" and one.num_seeds > 1]
    if not plain:
        return ""
    noise = ", ".join(f"{_words(m)} {plain[0].noise[m]:.5f}" for m in measures)
    return f"Standard deviation over seeds without skipping: {noise}."


def _words(measure):
    return {
        "auc": "AUC",
        "log_loss": "log loss",
        "recall_at_20": "recall@20",
        "calibration": "mean prediction / mean label",
    }[measure]


def _line(cells):
    return f"| {' | '.join(cells)} |"
