"""Draws what `quality.py` measured: AUC change against lookups and row updates saved.

    python benchmarks/plot_quality.py
    python benchmarks/plot_quality.py --data synthetic --optimizer adam --measure log_loss

One figure per data set, optimizer and other settings that has runs without skipping, as PNG and
SVG in --folder. A point is the mean over the seeds of the change against no skipping with the same
seed; bars are its standard error; the grey band is the mean's own noise without skipping.
"""

import argparse
import json
import os
import re
import sys

from quality import results

STYLES = {
    "defer": ("tab:blue", "o", "policy, deferring"),
    "skip": ("tab:green", "s", "policy, skipping"),
    "fixed": ("tab:cyan", "D", "fixed period"),
    "frozen_after": ("tab:orange", "^", "popularity alone"),
    "random_rows": ("tab:red", "v", "random rows"),
    "random_inputs": ("tab:purple", "x", "random inputs"),
    "stock": ("tab:gray", "*", "stock Keras"),
}


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", default=os.path.join("results", "quality.jsonl"))
    parser.add_argument("--folder", default=os.path.join("results", "quality"))
    parser.add_argument("--measure", default="auc", choices=["auc", "log_loss", "recall_at_20"])
    parser.add_argument("--data", help="this data set alone")
    parser.add_argument("--optimizer", help="this optimizer alone")
    parser.add_argument("--lowest", type=float, help="lower end of the changes that are drawn")
    parser.add_argument("--names", action="store_true", help="write each point's configuration")
    return parser.parse_args()


def main():
    args = arguments()
    try:
        import matplotlib
    except ImportError:
        sys.exit("Plots need matplotlib: pip install matplotlib")
    matplotlib.use("Agg")
    os.makedirs(args.folder, exist_ok=True)
    drawn = 0
    for job, configurations in results.jobs(results.load(args.input).values()).items():
        settings = json.loads(job)
        is_asked = args.data in (None, settings["data"])
        is_asked &= args.optimizer in (None, settings["optimizer"])
        if is_asked and args.measure in results.measures_of(configurations):
            compared = results.compare(configurations, [args.measure])
            drawn += draw(job, settings, compared, args)
    if not drawn:
        sys.exit(f"Nothing to draw: no job of {args.input} has runs with and without skipping.")


def draw(job, settings, compared, args):
    """Draws one job; returns whether there was anything to draw."""
    import matplotlib.pyplot as plt

    points = [
        one for one in compared if one.family in STYLES and one.changes[args.measure] is not None
    ]
    if not points:
        return False
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for axis, saved in zip(axes, ("lookups_saved", "row_updates_saved")):
        draw_points(axis, points, saved, args)
        draw_noise(axis, compared, args.measure)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_xlabel(f"{saved.replace('_', ' ')} (share)")
        axis.set_xlim(0, 1)
        axis.set_ylim(bottom=args.lowest)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"{args.measure} change against no skipping")
    axes[0].legend(fontsize=8)
    figure.suptitle(results.title_of(job), fontsize=9)
    figure.tight_layout()
    for suffix in ("png", "svg"):
        path = os.path.join(args.folder, f"{file_name(settings, args.measure)}.{suffix}")
        figure.savefig(path, dpi=130)
    print(path)
    plt.close(figure)
    return True


def draw_points(axis, points, saved, args):
    for family, (color, marker, label) in STYLES.items():
        mine = [one for one in points if one.family == family]
        if not mine:
            continue
        axis.errorbar(
            [getattr(one, saved) for one in mine],
            [one.changes[args.measure] for one in mine],
            yerr=[one.errors[args.measure] or 0 for one in mine],
            color=color,
            marker=marker,
            linestyle="none",
            capsize=3,
            label=label,
        )
        if args.names:
            for one in mine:
                place = (getattr(one, saved), one.changes[args.measure])
                axis.annotate(one.name, place, fontsize=5, rotation=20, alpha=0.7)


def draw_noise(axis, compared, measure):
    plain = [one for one in compared if one.family == "none" and one.noise[measure]]
    if plain:
        noise = plain[0].noise[measure] / plain[0].num_seeds ** 0.5
        axis.axhspan(-noise, noise, color="grey", alpha=0.2)


def file_name(settings, measure):
    first = [settings["data"], settings["optimizer"], measure]
    rest = [f"{k}-{v}" for k, v in settings.items() if k not in ("data", "optimizer") and v]
    return re.sub(r"[^\w.-]+", "-", "_".join([*first, *rest]))


if __name__ == "__main__":
    main()
