"""A comparison as text, Markdown and a page."""

from html import escape

from tf_slipstream.analysis.page_frame import framed, paragraph, table

# Letters of a name in a plot.
_MOST_SHOWN = 28
_VERDICTS_JA = {
    "better": "改善しています",
    "no worse": "許容範囲内で劣化はありません",
    "worse": "劣化しています",
    "not enough data": "データが不足しています",
}


def sentences(found, name, language="en"):
    """Returns what a manager may read aloud of one comparison, a list of three sentences."""
    one = found["comparisons"][name]
    change, speed = one["auc"], one["speed"]
    money = one.get("return") or {}
    if language == "ja":
        told = [
            f"{name} は {found['baseline']} と比べて{_VERDICTS_JA[one['verdict']]}。",
            f"AUC の変化は {change['mean']:+.4f}（95% 信頼区間 {change['low']:+.4f} ～ "
            f"{change['high']:+.4f}）です。",
        ]
        if speed:
            told.append(f"学習速度は {speed:.2f} 倍です。")
        return told
    told = [
        f"Compared with {found['baseline']!r}, {name!r} is: {one['verdict']} ({one['advice']}).",
        f"AUC changes by {change['mean']:+.4f}, and with 95% confidence by {change['low']:+.4f} to "
        f"{change['high']:+.4f}, over {change['num_seeds']} seed(s).",
    ]
    if speed:
        last = f"Training is {speed:.2f} times as fast"
        if money.get("hours_a_month") is not None:
            last += f", which is {money['hours_a_month']:,.1f} hours a month"
        if money.get("money_a_month") is not None:
            last += f" and {money['money_a_month']:,.0f} in money"
        if money.get("break_even_months") is not None:
            last += f"; it pays for itself in {money['break_even_months']:,.1f} months"
        told.append(last + ".")
    return told


def configuration_rows(found):
    """Yields rows of texts, a head and one for each configuration."""
    yield [
        "configuration",
        "seeds",
        "AUC",
        "log loss",
        "calib.",
        "recall",
        "s",
        "MB",
        "kJ",
        "net MB",
    ]
    for name, one in found["configurations"].items():
        yield [
            name,
            str(len(one["seeds"])),
            f"{one['auc']:.4f}",
            f"{one['log_loss']:.4f}",
            f"{one['calibration']:.3f}",
            f"{one['recall']:.3f}",
            _number(one["seconds"], 1, "{:,.1f}"),
            _number(one["peak_bytes"], 1e6, "{:,.0f}"),
            _number(one["joules"], 1e3, "{:,.2f}"),
            _number(one["num_bytes"], 1e6, "{:,.1f}"),
        ]


def change_rows(found):
    """Yields rows of texts, a head and one for each comparison."""
    yield ["against " + found["baseline"], "AUC", "log loss", "speed", "verdict"]
    for name, one in found["comparisons"].items():
        speed = "-" if one["speed"] is None else f"{one['speed']:.2f}x"
        yield [name, _interval(one["auc"]), _interval(one["log_loss"]), speed, one["verdict"]]


def group_rows(groups):
    """Yields rows of texts, a head and one for each group."""
    yield ["group", "examples", "may wait", "AUC", "log loss", "verdict"]
    for group in groups:
        yield [
            group["name"],
            f"{group['num_examples']:,}",
            "-" if group["waits"] is None else f"{group['waits']:.0%}",
            _interval(group["auc"]) if "auc" in group else "-",
            _interval(group["log_loss"]) if "log_loss" in group else "-",
            group["verdict"],
        ]


def text_lines(found):
    """Yields lines for a terminal."""
    for name in found["comparisons"]:
        yield from sentences(found, name)
        yield ""
    yield from _plain(configuration_rows(found))
    yield ""
    yield from _plain(change_rows(found))
    for name, one in found["comparisons"].items():
        if one.get("groups"):
            yield ""
            yield f"{name} by {found['by']}:"
            yield from _plain(group_rows(one["groups"]))
    yield ""
    yield _how(found)


def markdown(found, command):
    """Returns the report as Markdown."""
    parts = ["# Is the model as good, and what is gained?", ""]
    for name in found["comparisons"]:
        parts += [" ".join(sentences(found, name)), ""]
    parts += [_markdown_table(configuration_rows(found)), "", _markdown_table(change_rows(found))]
    for name, one in found["comparisons"].items():
        if one.get("groups"):
            parts += [
                "",
                f"## {name} by {found['by']}",
                "",
                _markdown_table(group_rows(one["groups"])),
            ]
    parts += ["", "## How it was found", "", _how(found), "", "```sh", command, "```", ""]
    return "\n".join(parts)


def page(found, command, language="en"):
    """Returns the report as a page, HTML as text."""
    title = {"en": "Is the model as good, and what is gained?", "ja": "モデルの品質と効果"}[
        language
    ]
    parts = [f"<h1>{escape(title)}</h1>"]
    for name in found["comparisons"]:
        told = " ".join(sentences(found, name, language))
        parts.append(f'<div class="answer">{escape(told)}</div>')
    parts += [
        "<h2>Change of AUC, with its 95% interval</h2>",
        _intervals(found),
        table(list(change_rows(found))),
        "<h2>The configurations</h2>",
        table(list(configuration_rows(found))),
    ]
    for name, one in found["comparisons"].items():
        if one.get("groups"):
            parts.append(f"<h2>{escape(name)} by {escape(str(found['by']))}</h2>")
            text = (
                "May wait: share of lookups that go to rows that may sleep, at the end of training."
            )
            parts += [paragraph(text, "soft"), table(list(group_rows(one["groups"])))]
    parts += ["<h2>How it was found</h2>", paragraph(_how(found))]
    parts.append(f"<pre>{escape(command)}</pre>")
    return framed(title, parts, language)


def _how(found):
    return (
        f"{found['num_examples']:,} test examples, {found['base_rate']:.2%} positive, the same for "
        "all runs; changes are paired by seed. The interval, ±, is of 95% and has both the test "
        "examples' part (DeLong) and the seeds'. No worse: its lower end is above "
        f"-{found['margin']:g} of AUC."
    )


def _intervals(found):
    """Returns intervals as SVG, with zero and the margin."""
    changes = {name: one["auc"] for name, one in found["comparisons"].items()}
    # A letter is about 7 wide. Names that are very long are cut, and the table has them whole.
    shown = {
        name: name if len(name) <= _MOST_SHOWN else name[:_MOST_SHOWN] + "…" for name in changes
    }
    left = 24 + 7 * max(map(len, shown.values()))
    width, row = left + 370, 30
    most = max(
        [found["margin"] * 1.3, *(max(abs(c["low"]), abs(c["high"])) for c in changes.values())]
    )
    height = row * len(changes) + 34

    def place(value):
        return left + (width - left - 30) * (value + most) / (2 * most)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="change of AUC">']
    # On either side of their lines, which may be close together.
    marks = ((0.0, "0", "start"), (-found["margin"], f"-{found['margin']:g}", "end"))
    for value, label, anchor in marks:
        x = place(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - 18}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 6}" text-anchor="{anchor}">{label}</text>')
    for number, (name, change) in enumerate(changes.items()):
        y = row * number + row / 2 + 4
        low, middle, high = (place(change[end]) for end in ("low", "mean", "high"))
        label = escape(shown[name])
        parts.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{label}</text>')
        parts.append(f'<polyline class="l0" points="{low:.1f},{y} {high:.1f},{y}"/>')
        parts.append(f'<circle class="s0" cx="{middle:.1f}" cy="{y}" r="5"/>')
    return "".join([*parts, "</svg>"])


def _interval(change):
    return f"{change['mean']:+.4f} ± {change['high'] - change['mean']:.4f}"


def _number(value, unit, form):
    return "-" if value is None else form.format(value / unit)


def _plain(rows):
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        yield ("  " + "  ".join(cells)).rstrip()


def _markdown_table(rows):
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(
        "| " + " | ".join(one.replace("|", "\\|") for one in row) + " |" for row in lines
    )
