"""Makes the bundled `engel`: the households of Engel (1857) as statsmodels ships them, with a heading of our own.

pip download --no-deps statsmodels; unzip statsmodels-*.whl -d FOLDER
python -m train.datasets.make_engel FOLDER [OUTPUT_FOLDER]
"""

import csv
import sys
from pathlib import Path

HEADING = ("income (francs a year)", "food expenditure (francs a year)")


def make(source: str | Path, output: str | Path) -> Path:
  """Writes `output/engel/engel.csv`."""
  with (Path(source) / "statsmodels/datasets/engel/engel.csv").open(newline="", encoding="utf-8") as file:
    rows = [(row["income"], row["foodexp"]) for row in csv.DictReader(file)]
  path = Path(output) / "engel" / "engel.csv"
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(f"{','.join(row)}\n" for row in (HEADING, *rows)), encoding="utf-8")
  return path


if __name__ == "__main__":
  print(make(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else Path(__file__).parent))
