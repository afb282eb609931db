"""What the pages of `tf-slipstream` have in common: one file, no script, nothing from elsewhere."""

from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --paper: #ffffff;
  --line: #dfe4ea; --s0: #1f6feb; --s1: #9ec1f7; --s2: #d9822b; --s3: #2f9e6e; --s4: #a05cc4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa5b4; --paper: #14181f;
  --line: #2c343f; --s0: #5b9bff; --s1: #2f4f80; --s2: #e09a52; --s3: #58c091; --s4: #c48be3; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, "Noto Sans", "Noto Sans CJK JP", sans-serif; color: var(--ink);
  background: var(--paper); margin: 0 auto; max-width: 860px; padding: 24px 20px 48px; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 1.1rem; margin: 32px 0 6px; }
.answer { font-size: 1.15rem; border-left: 4px solid var(--s0); padding: 4px 0 4px 16px;
  margin: 18px 0; }
.answer b { text-transform: uppercase; letter-spacing: .04em; }
p, li { margin: 6px 0; } .soft { color: var(--soft); font-size: .9rem; }
svg { width: 100%; max-width: 640px; height: auto; display: block; margin: 8px 0; }
svg text { fill: var(--ink); font: 12px system-ui, "Noto Sans", sans-serif; }
.grid { stroke: var(--line); } polyline { fill: none; stroke-width: 2; }
.s0 { fill: var(--s0); } .s1 { fill: var(--s1); } .s2 { fill: var(--s2); }
.s3 { fill: var(--s3); } .s4 { fill: var(--s4); }
.l0 { stroke: var(--s0); } .l1 { stroke: var(--s1); } .l2 { stroke: var(--s2); }
.l3 { stroke: var(--s3); } .l4 { stroke: var(--s4); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; min-width: 100%; }
th, td { padding: 4px 10px 4px 0; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: 600; }
code, pre { font: .85rem ui-monospace, "DejaVu Sans Mono", monospace; }
pre { background: color-mix(in srgb, var(--ink) 7%, transparent); padding: 10px 12px;
  overflow-x: auto; border-radius: 4px; }
@media print { body { font-size: 9.5pt; max-width: none; padding: 0; } h2 { margin-top: 10px; }
  svg { max-width: 330px; break-inside: avoid; margin: 2px 0; } table { font-size: 7.5pt; }
  th, td { padding: 1px 8px 1px 0; } .answer { margin: 8px 0; } p { margin: 3px 0; }
  pre { white-space: pre-wrap; padding: 4px 8px; } }
"""


def framed(title, parts, language="en"):
    """Returns a page.

    Args:
        title: Text.
        parts: HTML, in order.
        language: Of the page, as HTML's `lang`.
    """
    return (
        f'<!doctype html>\n<html lang="{language}">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def table(rows):
    """Returns an HTML table of rows of texts; the first row is its head."""
    head, *body = rows
    made = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    made += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body]
    return f'<div class="wide"><table>{"".join(made)}</table></div>'


def paragraph(text, kind=""):
    of_kind = f' class="{kind}"' if kind else ""
    return f"<p{of_kind}>{escape(text)}</p>"
