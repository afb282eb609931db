"""Writes the latest results as Markdown tables, a row per case and a column per subject.

    python benchmarks/report.py results/embedding_step.jsonl

Milliseconds: the median over the steps of all rounds (10th to 90th percentile), and how many times
ours that is.
"""

import argparse

import runner


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+")
    parser.add_argument("--ours", default="slipstream", help="the subject of the ratios")
    args = parser.parse_args()
    print("\n".join(table(runner.load(args.files), args.ours)))


def table(found, ours):
    """Returns the table's lines."""
    cases = list(dict.fromkeys(case for case, _ in found))
    subjects = list(dict.fromkeys(subject for _, subject in found))
    lines = ["| case | " + " | ".join(subjects) + " |", "|---" * (1 + len(subjects)) + "|"]
    for case in cases:
        reference = _times(found, case, ours)
        cells = [_cell(_times(found, case, subject), reference) for subject in subjects]
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return lines


def _times(found, case, subject):
    rounds = found.get((case, subject))
    return None if rounds is None else runner.milliseconds(rounds)


def _cell(times, reference):
    if times is None:
        return ""
    low, median, high = (f"{value:.{_digits(times[1])}f}" for value in times)
    cell = f"{median} ({low}–{high})"
    if reference is None or reference is times or reference[1] == times[1]:
        return cell
    return f"{cell}, {times[1] / reference[1]:.2f}x"


def _digits(value):
    return 0 if value >= 100 else 1 if value >= 10 else 2


if __name__ == "__main__":
    main()
