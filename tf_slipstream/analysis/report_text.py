"""What `tf-slipstream analyze` prints: 80 columns, plain text."""

import textwrap

_WIDTH = 80


def lines(found):
    """Yields lines of what `Survey.run` and `conclude` found."""
    verdict = found["verdict"]
    yield from textwrap.wrap(f"{verdict['answer'].upper()}: {'; '.join(verdict['why'])}.", _WIDTH)
    yield ""
    yield f"  next: {verdict['next']}"
    yield ""
    rate = found["base_rate"]
    yield (
        f"{found['num_examples']:,} examples, {found['num_steps']:,} steps of "
        f"{found['batch_size']:,}" + ("" if rate is None else f", {rate:.2%} positive")
    )
    yield ""
    yield from _table(field_rows(found))
    yield ""
    yield "  Top 1%: share of lookups of the hottest 1% of ids. Batch: distinct ids in a"
    yield "  batch. Unseen: lookups, in the last fifth, of ids not in the first four."
    yield ""
    yield from _table(policy_rows(found))
    yield ""
    yield "  Wait: share of lookups / row updates deferred, as expected of a trained model;"
    yield "  at most: with every row at rest. Bytes: of a step, to and from servers."
    yield "  An id with much of a field's lookups, padding say, may wait less than that."
    memory = found["costs"]["memory"]
    yield ""
    yield "Memory, MB: " + ", ".join(f"{name} {num / 1e6:,.1f}" for name, num in memory.items())
    inputs = found["inputs"]
    yield from textwrap.wrap(f"Inputs: keep {inputs['kept']:.0%} ({inputs['why']})", _WIDTH)


def batch_share(field, batch_size):
    """Returns the share of distinct ids in batches of the known size that is nearest."""
    shares = field["distinct_per_batch"]
    if not shares:
        return None
    return shares[min(shares, key=lambda size: abs(int(size) - batch_size))]


def field_rows(found):
    """Yields rows of texts, a head and one for each field."""
    yield ["field", "ids", "Zipf", "Gini", "top 1%", "batch", "unseen", "hot set"]
    for field in found["fields"]:
        zipf, movement = field["zipf_exponent"], field["movement"]
        yield [
            field["name"][:14],
            f"{'>' if field['is_distinct_bound'] else ''}{field['distinct_ids']:,}",
            "-" if zipf is None else f"{zipf:.2f}",
            f"{field['gini']:.2f}",
            f"{field['hot_shares']['0.01']:.0%}",
            _percent(batch_share(field, found["batch_size"])),
            _percent(field["unseen_share"]),
            movement["kind"] or "-",
        ]


def policy_rows(found):
    """Yields rows of texts, a head and one for each policy."""
    yield ["policy", "wait", "at most", "bytes", "ms", "speed"]
    for name, row in found["costs"]["steps"].items():
        shares = found["policies"].get(name)
        wait = most = "-"
        if shares:
            wait = f"{shares['lookups_deferred']:.0%} / {shares['row_updates_deferred']:.0%}"
            most = (
                f"{shares['most_lookups_deferred']:.0%} / {shares['most_row_updates_deferred']:.0%}"
            )
        label = {"none": "(no policy)", "stock": "(stock Keras)"}.get(name, name)
        num_bytes = f"{row['bytes']:,.0f}" if row["bytes"] else "-"
        yield [label, wait, most, num_bytes, f"{row['ms']:.2f}", f"{row['speed']:.2f}x"]


def _percent(share):
    return "-" if share is None else f"{share:.0%}"


def _table(rows):
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        yield ("  " + "  ".join(cells)).rstrip()
