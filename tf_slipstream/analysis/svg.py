"""Plots as SVG for a page: plain text, no script, colours by the page's style sheet."""

from html import escape

_WIDTH, _LEFT, _RIGHT, _ROW = 480, 100, 50, 22


def bars(rows, names, share_format="{:.0%}"):
    """Returns horizontal bars, one group for each row.

    Args:
        rows: List of pairs of a label and a list of shares in [0, 1], one for each of `names`.
        names: Of the bars of a group, for the legend; at most 3.
        share_format: Of the number beside a bar.
    """
    thin = _ROW / max(1, len(names)) if len(names) > 1 else _ROW - 6
    group = max(_ROW, thin * len(names)) + 6
    height = group * len(rows) + (24 if len(names) > 1 else 6)
    room = _WIDTH - _LEFT - _RIGHT
    parts = [_begin(height, "bars: " + ", ".join(names))]
    for place, (label, shares) in enumerate(rows):
        top = place * group + 4
        middle = top + (thin * len(names) - 2) / 2 + 4
        parts.append(_text(_LEFT - 8, middle, label, "end"))
        for number, share in enumerate(shares):
            y = top + number * thin
            width = max(0.0, min(1.0, share)) * room
            parts.append(
                f'<rect class="s{number}" x="{_LEFT}" y="{y:.1f}" width="{width:.1f}" '
                f'height="{thin - 2:.1f}" rx="2"/>'
            )
            y += thin / 2 + 3
            parts.append(_text(_LEFT + width + 5, y, share_format.format(share), "start"))
    if len(names) > 1:
        parts.append(_legend(names, height - 8))
    return "".join([*parts, "</svg>"])


def lines(series, x_label, y_label):
    """Returns lines of shares in [0, 1] over 1, 2, 3, ...

    Args:
        series: List of pairs of a name and a list of shares; at most 5.
        x_label, y_label: Of the axes.
    """
    height, top, bottom = 230, 10, 60
    num = max(len(values) for _, values in series)
    room, tall = _WIDTH - _LEFT - _RIGHT, height - top - bottom
    parts = [_begin(height, y_label)]
    for share in (0, 0.5, 1):
        y = top + tall * (1 - share)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(_text(_LEFT - 8, y + 4, f"{share:.0%}", "end"))
    for number, (_, values) in enumerate(series):
        points = " ".join(
            f"{_LEFT + room * place / max(1, num - 1):.1f},{top + tall * (1 - value):.1f}"
            for place, value in enumerate(values)
        )
        parts.append(f'<polyline class="l{number}" points="{points}"/>')
    parts.append(_text(_LEFT, height - bottom + 18, "1", "middle"))
    parts.append(_text(_WIDTH - _RIGHT, height - bottom + 18, str(num), "middle"))
    parts.append(_text(_LEFT + room / 2, height - bottom + 18, x_label, "middle"))
    parts.append(_legend([name for name, _ in series], height - 8))
    return "".join([*parts, "</svg>"])


def _begin(height, title):
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg">'
    )


def _text(x, y, text, anchor):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(str(text))}</text>'


def _legend(names, y):
    parts, x = [], _LEFT
    for number, name in enumerate(names):
        parts.append(f'<rect class="s{number}" x="{x}" y="{y - 9}" width="10" height="10"/>')
        parts.append(_text(x + 15, y, name, "start"))
        x += 30 + 7 * len(str(name))
    return "".join(parts)
