"""Keeps results in `docs/evidence/measured/`, and writes the tables of the pages from them.

    python benchmarks/evidence.py                                    # writes the tables anew
    python benchmarks/evidence.py --keep results/parity.jsonl --as parity   # results into measured/

A table stands between `<!-- table NAME -->` and `<!-- end of table -->`. `make test` fails where a
page has other numbers than the results. What is kept of a line is what the tables, `parity.py
--summary` and `quality.py --summary` need; of a run that is kept already the new one stays.
"""

import argparse
import json
import pathlib
import re
import time

from quality import results

ROOT = pathlib.Path(__file__).parents[1]
MEASURED = ROOT / "docs" / "evidence" / "measured"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "evidence").glob("*.md"))]
TABLE = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end of table -->)", re.S)
KEPT_SETTINGS = ("data", "examples", "optimizer", "learning_rate", "batch_size", "epochs", "tuning")
KEPT_SETTINGS += ("best_of", "click_rate", "negatives")
KEPT_RESULTS = ("auc", "log_loss", "lookups_saved", "row_updates_saved", "examples_per_second")
OPTIMIZERS = ("sgd", "momentum", "nesterov", "adagrad", "adam", "adamw", "amsgrad", "rmsprop")
OPTIMIZERS += ("rmsprop_momentum",)
DATA = ("long_tail", "criteo80k", "gowalla", "diginetica", "synthetic", "seasonal", "trending")
DATA += ("drifting", "changing", "gowalla_clicks", "diginetica_clicks")
# A policy for long runs, as `benchmarks/quality.py` names it.
LONG = "min_updates=10,updates_per_sleep=8,max_sleep=32,warm_up=200"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", nargs="+", default=[], help="files of parity.py or quality.py")
    parser.add_argument("--as", dest="name", help="name of the file in measured/")
    args = parser.parse_args()
    if args.keep:
        keep(args.keep, MEASURED / f"{args.name}.jsonl")
    for page in PAGES:
        page.write_text(with_tables(page.read_text()))


def keep(sources, path):
    """Adds what `short` keeps of the lines of files to those of the file at `path`."""
    lines = list(results.load(path).values())
    for source in sources:
        with open(source) as file:
            found = [json.loads(line) for line in file if line.strip()]
        lines += [short(line) for line in found if "failed" not in line["result"]]
    kept = {results.key_of(line["settings"]): line for line in lines}
    path.write_text("".join(json.dumps(line) + "\n" for line in kept.values()))


def short(line):
    settings = {name: line["settings"].get(name) for name in KEPT_SETTINGS}
    settings = {name: value for name, value in settings.items() if value is not None}
    settings |= {"configuration": line["name"], "seed": line["settings"]["seed"]}
    settings.setdefault("tuning", False)
    result = {name: float(f"{line['result'][name]:.8g}") for name in KEPT_RESULTS}
    kept = {"name": line["name"], "family": line["family"], "settings": settings, "result": result}
    date = time.strftime("%Y-%m-%d", time.gmtime(line["time"]))
    return kept | {"date": date, "cpu": line["machine"]["cpu"]}


def with_tables(text):
    """Returns a page's text with its tables made anew."""
    return TABLE.sub(lambda found: found[1] + TABLES[found[2]]() + "\n" + found[3], text)


def parity():
    """Changes of AUC against stock Keras at its own best rate."""
    return _parity("auc", "AUC")


def parity_log_loss():
    """The same of log loss."""
    return _parity("log_loss", "log loss")


def _parity(measure, title):
    heads = ["data, epochs", "optimizer, rate", "seeds", f"stock: {title}"]
    rows = [[*heads, "`dense`", "no policy", "`default`"]]
    for settings, found in _jobs("parity", "stock"):
        if not {"stock", "none"} <= set(found):
            continue
        row = _setting(settings)
        row += [str(found["stock"].num_seeds), f"{found['stock'].values[measure]:.4f}"]
        others = [found.get(name) for name in ("dense", "none", "default")]
        # Of one seed alone the error is not known.
        is_known = [one is not None and one.errors[measure] is not None for one in others]
        cells = [_signed(one, measure) if known else "" for one, known in zip(others, is_known)]
        rows.append([*row, *cells])
    return _markdown(rows)


def presets():
    """What the presets save and cost, against no policy."""
    return _saved("parity", ("default", "balanced", "aggressive"), ("momentum", "adagrad", "adam"))


def long_log():
    return _saved("long_log", ("default", "aggressive"))


def changing_logs():
    return _saved("changing_logs", ("default",))


def auto():
    return _saved("auto", ("default", "auto", LONG))


def _saved(name, policies, optimizers=OPTIMIZERS):
    heads = ["data, epochs", "optimizer, rate", "policy", "seeds", "lookups saved"]
    rows = [[*heads, "row updates saved", "change of AUC", "of log loss"]]
    for settings, found in _jobs(name, "none"):
        if settings["optimizer"] not in optimizers or "none" not in found:
            continue
        for policy in filter(found.get, policies):
            one = found[policy]
            row = _setting(settings)
            title = "LONG" if policy == LONG else policy
            row += [f"`{title}`", str(min(one.num_seeds, found["none"].num_seeds))]
            row += [f"{one.lookups_saved:.0%}", f"{one.row_updates_saved:.0%}"]
            rows.append([*row, _signed(one, "auc"), _signed(one, "log_loss")])
    return _markdown(rows)


def chosen():
    """What ways of choosing inputs cost, each at its own best rate."""
    return _chosen("choosing_inputs")


def chosen_of_long_logs():
    return _chosen("choosing_inputs_long")


def chosen_clicks():
    return _chosen("choosing_clicks")


def wide():
    return _chosen("choosing_wide")


def _chosen(file):
    rows = [["data", "seeds", "way", "kept", "AUC", "change", "log loss", "change"]]
    for settings, found in _jobs(file, "none"):
        title = [settings["data"], str(found["none"].num_seeds)]
        if "click_rate" in settings:
            title[0] += f", {settings['click_rate']:.0%} positive"
        if settings["data"].endswith("_clicks"):
            title[0] += f", {1 / (1 + settings['negatives']):.0%} positive"
        for name, one in sorted(found.items(), key=lambda item: item[0] != "none"):
            way, _, kept = name.removesuffix(",wide").partition("=")
            row = ["all inputs", "100%"] if name == "none" else [f"`{way}`", f"{float(kept):.0%}"]
            if name.endswith(",wide"):
                row[0] = "all inputs, `wide`" if kept == "1" else f"{row[0]}, `wide`"
            for measure in ("auc", "log_loss"):
                change = "" if name == "none" else _signed(one, measure)
                row += [f"{one.values[measure]:.4f}", change]
            rows.append([*title, *row])
            title = ["", ""]
    return _markdown(rows)


def steps():
    """Milliseconds of an embedding step, ours with its spread."""
    return _steps(lambda low, median, high: f"{median:.1f} ({low:.1f}–{high:.1f})")


def short_steps():
    """Milliseconds of an embedding step: medians."""
    return _steps(lambda low, median, high: _digits(median))


def _digits(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _steps(ours_in_words):
    found = {}
    for line in embedding_steps():
        found.setdefault((line["table"], line["optimizer"]), {})[line["subject"]] = line["ms"]
    subjects = {"slipstream": "tf_slipstream", "keras3": "`keras.layers.Embedding`, Keras 3"}
    subjects["tf_keras_legacy"] = "`tf.nn.embedding_lookup`, tf_keras legacy"
    rows = [["table", "optimizer", *subjects.values()]]
    for (table, optimizer), times in found.items():
        ours = times["slipstream"]
        row = [table, optimizer, ours_in_words(*ours)]
        for subject in list(subjects)[1:]:
            median = times[subject][1]
            ratio = median / ours[1]
            row.append(f"{_digits(median)}, {ratio:,.{0 if ratio >= 10 else 1}f}x")
        rows.append(row)
    return _markdown(rows)


def embedding_steps():
    """Returns the lines of measured/embedding_step.jsonl: 10th, 50th, 90th percentile in `ms`."""
    with open(MEASURED / "embedding_step.jsonl") as file:
        return [json.loads(line) for line in file]


def _jobs(name, baseline):
    """Returns pairs of a job's settings and its `Comparison`s by name, in the pages' order."""
    lines = results.load(MEASURED / f"{name}.jsonl").values()
    found = results.jobs(line for line in lines if not line["settings"]["tuning"])
    jobs = [(json.loads(key), _compared(runs, baseline)) for key, runs in found.items()]

    def place(job):
        settings = job[0]
        optimizer = OPTIMIZERS.index(settings["optimizer"])
        rate = settings.get("learning_rate", settings.get("click_rate", 0.0))
        return DATA.index(settings["data"]), settings["epochs"], optimizer, rate

    return sorted(jobs, key=place)


def _compared(runs, baseline):
    compared = results.compare(runs, ("auc", "log_loss"), baseline)
    return {one.name: one for one in compared}


def _setting(settings):
    rate = f"{settings['optimizer']}, {settings['learning_rate']:g}"
    return [f"{settings['data']}, {settings['epochs']}", rate]


def _signed(one, measure):
    # Spaces at which no line breaks.
    return (
        f"{one.changes[measure]:+.4f}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{one.errors[measure]:.4f}"
    )


def _markdown(rows):
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


TABLES = {
    made.__name__: made
    for made in (parity, parity_log_loss, presets, long_log, changing_logs, auto, chosen)
} | {made.__name__: made for made in (chosen_of_long_logs, chosen_clicks, wide)}
TABLES |= {made.__name__: made for made in (steps, short_steps)}

if __name__ == "__main__":
    main()
