"""Draws README's picture from `docs/evidence/measured/embedding_step.jsonl`.

    python benchmarks/picture.py          # writes docs/images/speed.svg

Bars of milliseconds on a logarithmic axis. Written by hand, because plotting libraries make files
that are twenty times as large and differ from version to version.
"""

import math
import pathlib

import evidence

PICTURE = pathlib.Path(__file__).parents[1] / "docs" / "images" / "speed.svg"
# By subject: its name and its colour.
SUBJECTS = {
    "slipstream": ("tf_slipstream", "#0b7285"),
    "tf_keras_legacy": ("tf.nn.embedding_lookup, legacy optimizer", "#868e96"),
    "keras3": ("keras.layers.Embedding, Keras 3", "#ced4da"),
}
WIDTH, LEFT, RIGHT, TOP, BAR, GAP = 760, 150, 90, 84, 13, 12
DECADES = (1, 10, 100, 1_000, 10_000)
AXIS = 20_000  # milliseconds at the right end


def main():
    PICTURE.write_text(drawn(evidence.embedding_steps()))


def drawn(lines):
    """Returns the picture of lines of results as SVG."""
    groups = {}
    for line in lines:
        groups.setdefault((line["table"], line["optimizer"]), {})[line["subject"]] = line["ms"][1]
    height = TOP + len(groups) * (len(SUBJECTS) * BAR + GAP) + 26
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12" fill="#212529">',
        "<title>Milliseconds of an embedding step, against stock Keras</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#ffffff"/>',
        _text(14, 24, "An embedding step: lookup, gradient, update of 53,248 ids", size=15),
        _text(
            14,
            43,
            "Milliseconds on a logarithmic axis. 1M x 32: a million rows of 32 floats. Two cores.",
        ),
    ]
    place = 14
    for name, colour in SUBJECTS.values():
        parts.append(f'<rect x="{place}" y="55" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(place + 18, 65, name))
        place += 34 + 6.6 * len(name)
    bottom = height - 26
    for value in DECADES:
        x = _place(value)
        parts.append(f'<path d="M{x:.0f} {TOP - 6}V{bottom}" stroke="#e9ecef"/>')
        parts.append(_text(x, height - 10, f"{value:,} ms", anchor="middle"))
    y = TOP
    for (table, optimizer), times in groups.items():
        parts.append(_text(LEFT - 10, y + 1.5 * BAR + 4, f"{table}, {optimizer}", anchor="end"))
        for subject, (_, colour) in SUBJECTS.items():
            end = _place(times[subject])
            bar = f'x="{LEFT}" y="{y}" width="{end - LEFT:.0f}" height="{BAR - 2}"'
            parts.append(f'<rect {bar} fill="{colour}"/>')
            parts.append(_text(end + 6, y + 10, _label(times, subject), size=11))
            y += BAR
        y += GAP
    return "\n".join([*parts, "</svg>"]) + "\n"


def _place(milliseconds):
    """Returns where a time ends on the axis, which begins at 1 ms."""
    width = WIDTH - LEFT - RIGHT
    return LEFT + width * math.log(milliseconds) / math.log(AXIS)


def _label(times, subject):
    median, ours = times[subject], times["slipstream"]
    number = f"{median:,.0f}" if median >= 100 else f"{median:.1f}"
    if subject == "slipstream":
        return number
    ratio = median / ours
    return f"{number}, {ratio:,.{0 if ratio >= 10 else 1}f}x"


def _text(x, y, words, anchor="start", size=12):
    place = f'x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" font-size="{size}"'
    return f"<text {place}>{words}</text>"


if __name__ == "__main__":
    main()
