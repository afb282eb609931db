"""The page of `tf-slipstream analyze --html`."""

from html import escape

from tf_slipstream.analysis import svg
from tf_slipstream.analysis.page_frame import framed, paragraph, table
from tf_slipstream.analysis.report_text import field_rows, policy_rows

LANGUAGES = ("en", "ja")
_MOST_LINES, _MOST_BARS = 5, 12
_ANSWERS_JA = {"go": "導入を推奨", "try": "試す価値あり", "not worth it": "効果は小さい"}


def page(found, command, language="en"):
    """Returns the page, HTML as text, of what `Survey.run` and `conclude` found.

    Args:
        found: The dict that `--json` prints.
        command: How it was made, a text.
        language: Of the headline, one of `LANGUAGES`.
    """
    parts = [
        f"<h1>{escape(_title(found, language))}</h1>",
        paragraph(f"{found['path']}: {found['num_examples']:,} examples", "soft"),
        f'<div class="answer">{_headline(found, language)}</div>',
        f"<pre>{escape(found['verdict']['next'])}</pre>",
        "<h2>What would wait</h2>",
        paragraph(
            "Share of lookups whose gradient is held until its row wakes: as expected of a trained "
            "model, and at most, with every row at rest. An id with much of a field's lookups, "
            "padding say, may wait less than expected.",
            "soft",
        ),
        _policies_plot(found),
        table(list(policy_rows(found))),
        "<h2>How uneven the ids are</h2>",
        paragraph(
            "Share of lookups that go to the hottest 1% of a field's ids, of the largest fields.",
            "soft",
        ),
        svg.bars([(f["name"], [f["hot_shares"]["0.01"]]) for f in _largest(found)], ["top 1%"]),
        table(list(field_rows(found))),
        *_movement(found),
        "<h2>Why</h2>",
        "<ul>" + "".join(f"<li>{escape(one)}</li>" for one in found["verdict"]["why"]) + "</ul>",
        "<h2>How it was found</h2>",
        paragraph(
            "The log was read once, in its order, in batches of "
            f"{found['batch_size']:,}. The state machine of stale rows ran over its ids; nothing "
            "was trained. Bytes and times are by cost models (docs/guide/deciding.md), "
            f"not measured: {_setting(found)}. Memory: {_memory(found)}. Inputs: keep "
            f"{found['inputs']['kept']:.0%}, because {found['inputs']['why']}."
        ),
        f"<pre>{escape(command)}</pre>",
    ]
    return framed(_title(found, language), parts, language)


def _title(found, language):
    return {"en": "Is it worth it for this log?", "ja": "このログで効果はあるか"}[language]


def _headline(found, language):
    """Returns three sentences that may be read aloud, as HTML."""
    verdict, policies = found["verdict"], found["policies"]
    name = verdict["policy"] or "default"
    share, speed = policies[name]["lookups_deferred"], found["costs"]["steps"][name]["speed"]
    workers = found["setting"]["workers"]
    if language == "ja":
        network = (
            f"{workers} 台のワーカーでは学習ステップが約 {speed:.2f} 倍速くなる見込みです。"
            if workers > 1
            else "1 台のマシンでは、更新の先送りだけではステップは速くなりません。"
        )
        return (
            f"<b>{_ANSWERS_JA[verdict['answer']]}</b>。"
            f"埋め込み参照の約 {share:.0%} は更新を先送りできます。{network}"
        )
    network = (
        f"With {workers} workers a training step would be about {speed:.2f} times as fast."
        if workers > 1
        else "On one machine waiting alone makes no step faster; smaller reads and writes do."
    )
    return (
        f"<b>{escape(verdict['answer'])}</b>. About {share:.0%} of the lookups in this log need no "
        f"update at once. {network}"
    )


def _policies_plot(found):
    rows = [
        (name, [shares["lookups_deferred"], shares["most_lookups_deferred"]])
        for name, shares in found["policies"].items()
    ]
    return svg.bars(rows, ["expected", "at most"])


def _largest(found):
    fields = sorted(found["fields"], key=lambda field: -field["distinct_ids"])
    return fields[:_MOST_BARS]


def _movement(found):
    known = [f for f in found["fields"] if f["movement"]["kind"] is not None]
    if not known:
        return []
    known.sort(key=lambda field: field["movement"]["overlap_last"])
    series = [(f["name"], f["movement"]["by_lag"]) for f in known[:_MOST_LINES]]
    moving = [f"{f['name']} ({f['movement']['kind']})" for f in known]
    moving = [one for one in moving if "steady" not in one]
    text = (
        f"Share of a period's hottest 1% that is hot so many {found['periods']} later: the fields "
        "that change most."
    )
    told = "Fields whose hot set changes: " + (", ".join(moving) or "none") + "."
    return [
        "<h2>How the hot set moves</h2>",
        paragraph(text, "soft"),
        svg.lines(series, f"{found['periods']} between", "overlap"),
        paragraph(told),
    ]


def _setting(found):
    setting = found["setting"]
    return (
        f"{setting['workers']} worker(s), {setting['bandwidth'] / 1e9:g} Gbit/s, rows of "
        f"{setting['dim']}, {setting['optimizer']}, {setting['compute_ms']:g} ms of dense work"
    )


def _memory(found):
    memory = found["costs"]["memory"]
    return ", ".join(f"{name} {num / 1e6:,.1f} MB" for name, num in memory.items())
