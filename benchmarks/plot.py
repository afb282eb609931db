"""Draws how an embedding step's time grows, from JSON lines of `embedding_step.py`.

    python benchmarks/plot.py results/embedding_step.jsonl --output results/scaling.svg

A panel per grid that the file has results of: time against rows, lookups, dims, skew, bags, tables
and threads. Points are medians over all runs that the file has of a case, bars reach from the 10th
to the 90th percentile.
"""

import argparse

import cases
import matplotlib
import runner

matplotlib.use("agg")
import matplotlib.pyplot as plt

# By grid: the axis, its name, and whether it is logarithmic.
AXES = {
    "rows": (lambda case: sum(case.cardinalities), "rows (dim 32)", True),
    "lookups": (lambda case: case.lookups, "lookups a step", True),
    "dims": (lambda case: case.dim, "dim (1M rows)", True),
    "skew": (lambda case: case.zipf, "Zipf exponent", False),
    "bags": (lambda case: case.bag, "lookups of a bag", True),
    "tables": (lambda case: len(case.cardinalities), "tables (1M rows in all)", True),
    "threads": (lambda case: case.threads, "threads (1M x 32)", False),
}
# Of a grid over two things the panel shows one.
SHOWN = {
    "dims": lambda case: case.table.startswith("1000000x"),
    "threads": lambda case: case.table == cases.TARGET_TABLES[0],
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+")
    parser.add_argument("--output", default="results/scaling.svg")
    args = parser.parse_args()
    found = runner.load(args.files, all_runs=True)
    grids = {grid: lines for grid in AXES if (lines := series(found, grid))}
    if not grids:
        parser.error("the files have no results of two or more cases of a grid")
    draw(grids, args.output)


def series(found, grid):
    """Returns, by subject, lists of `(x, low, median, high)`; not of a subject with one point."""
    x_of, _, _ = AXES[grid]
    shown = SHOWN.get(grid, lambda case: True)
    lines = {}
    for case in filter(shown, cases.GRIDS[grid]()):
        for (name, subject), rounds in found.items():
            if name == case.name and runner.milliseconds(rounds) is not None:
                point = (x_of(case), *runner.milliseconds(rounds))
                lines.setdefault(subject, []).append(point)
    return {subject: sorted(points) for subject, points in lines.items() if len(points) > 1}


def draw(grids, output):
    num_columns = min(3, len(grids))
    num_rows = -(-len(grids) // num_columns)
    figure, axes = plt.subplots(
        num_rows, num_columns, figsize=(4.4 * num_columns, 3.4 * num_rows), squeeze=False
    )
    subjects = list(dict.fromkeys(name for lines in grids.values() for name in lines))
    colors = {name: f"C{index}" for index, name in enumerate(subjects)}
    for axis, (grid, lines) in zip(axes.flat, grids.items()):
        for subject, points in lines.items():
            x, low, median, high = map(list, zip(*points))
            below = [m - value for m, value in zip(median, low)]
            above = [value - m for m, value in zip(median, high)]
            bars = {"yerr": [below, above], "capsize": 2, "marker": "o", "markersize": 3}
            axis.errorbar(x, median, **bars, label=subject, color=colors[subject], linewidth=1)
        _, label, is_log = AXES[grid]
        axis.set_xlabel(label)
        axis.set_ylabel("ms a step")
        axis.set_yscale("log")
        if is_log:
            axis.set_xscale("log")
        axis.grid(True, which="both", alpha=0.2)
    for axis in axes.flat[len(grids) :]:
        axis.axis("off")
    handles = {}
    for axis in axes.flat[: len(grids)]:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels())))
    figure.legend(handles.values(), handles.keys(), loc="lower right", fontsize=9)
    figure.tight_layout()
    figure.savefig(output)


if __name__ == "__main__":
    main()
