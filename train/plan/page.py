"""A plan as one HTML page that opens without a network: figures, and bars of where the cycles and the memory go."""

import html
from collections import defaultdict

from train.plan.chips import GB
from train.plan.report import Plan

COLOURS = {
  "matmul": "#4269d0",
  "kernel": "#3ca951",
  "reduction": "#efb118",
  "element-wise": "#ff725c",
  "layout": "#9c6b4e",
  "copies": "#97bbf5",
  "collectives": "#a463f2",
}
MEMORY = {"state and batch": "#4269d0", "temporaries": "#efb118", "new state": "#3ca951", "program": "#9c6b4e"}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.15rem; margin-top: 2rem }
p { margin: .3rem 0 .8rem } .note { color: #616e7c; font-size: 13px }
table { border-collapse: collapse } td { padding: .15rem 1rem .15rem 0; vertical-align: top }
td:first-child { color: #616e7c; white-space: pre }
.bars { display: grid; grid-template-columns: minmax(8rem, 22rem) 1fr 8rem; gap: .25rem .8rem; align-items: center }
.name { text-align: right; overflow-wrap: anywhere; font-size: 13px } .value { font-size: 13px }
.bar { display: flex; height: 1.1rem; background: #f1f4f8 } .bar i { display: block; height: 100% }
.key { font-size: 13px } .key i { display: inline-block; width: .8rem; height: .8rem; margin: 0 .3rem 0 1rem }
"""


def page(plan: Plan, price: float | None = None, shown: int = 24) -> str:
  """The HTML of a plan; of the layers the `shown` most expensive."""
  rows = "".join(f"<tr><td>{_text(name)}</td><td>{_text(value)}</td></tr>" for name, value in plan.rows(price).items())
  sections = [f"<table>{rows}</table>"]
  if plan.cycles:
    total = plan.cycles.total
    sums = {kind: {kind: cycles} for kind, cycles in plan.cycles.by(2).items()}
    sums |= {name: {name: getattr(plan.cycles, name)} for name in ("copies", "collectives")}
    layers: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    directions: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for (layer, direction, kind), cycles in plan.cycles.parts.items():
      layers[layer][kind] += cycles
      directions[direction][kind] += cycles
    largest = sorted(layers.items(), key=lambda item: -sum(item[1].values()))
    rest: dict[str, float] = defaultdict(float)
    for _, kinds in largest[shown:]:
      for kind, cycles in kinds.items():
        rest[kind] += cycles
    largest = dict(largest[:shown]) | ({f"{len(layers) - shown} others": rest} if rest else {})
    sections += [
      f"<h2>Where {total / 1e6:,.1f} Mcycles go</h2>{_key(COLOURS)}",
      _bars(sums, total, COLOURS, "M", 1e6),
      "<h2>By direction</h2>",
      _bars(directions, total, COLOURS, "M", 1e6),
      "<h2>By layer</h2>",
      _bars(largest, total, COLOURS, "M", 1e6),
    ]
  memory = plan.memory
  if memory.temporaries is not None:
    parts = {name: getattr(memory, field) for name, field in zip(MEMORY, _FIELDS, strict=True)}
    parts["new state"] -= memory.aliased
    # The parts are not all alive at once: the bar of each shows what it takes.
    bars = {name: {name: size} for name, size in parts.items()} | {"most at once": {"temporaries": memory.peak}}
    sections += ["<h2>Memory of a chip</h2>", _bars(bars, memory.usable, MEMORY, "GiB", GB)]
  title = f"{plan.model} on {plan.topology}"
  note = (
    "The TPU compiler's prediction for a program that was compiled and not run: its estimate for each operation, "
    "bundles times grid for kernels of Pallas, and transfers at the published bandwidths where nothing hides them."
  )
  return (
    f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{_text(title)}</title><style>{_STYLE}</style>"
    f"<h1>{_text(title)}</h1><p class='note'>{note}</p>{''.join(sections)}</html>\n"
  )


_FIELDS = ("arguments", "temporaries", "outputs", "program")


def _text(value: object) -> str:
  return html.escape(str(value))


def _key(colours: dict[str, str]) -> str:
  return "<p class='key'>" + "".join(f"<i style='background:{c}'></i>{name}" for name, c in colours.items()) + "</p>"


def _bars(rows: dict, whole: float, colours: dict[str, str], unit: str, scale: float) -> str:
  """A bar a row, made of its parts; the longest bar fills the width, and the share is that of `whole`."""
  longest = max((sum(parts.values()) for parts in rows.values()), default=0) or 1
  cells = []
  for name, parts in rows.items():
    size = sum(parts.values())
    inside = "".join(
      f"<i style='width:{100 * n / longest:.2f}%;background:{colours[part]}' "
      f"title='{_text(part)}: {n / scale:,.2f} {unit}'></i>"
      for part, n in sorted(parts.items(), key=lambda item: [*colours].index(item[0]))
    )
    value = f"{size / scale:,.2f} {unit} · {size / whole:.1%}"
    cells.append(
      f"<div class='name'>{_text(name)}</div><div class='bar'>{inside}</div><div class='value'>{value}</div>"
    )
  return f"<div class='bars'>{''.join(cells)}</div>"
