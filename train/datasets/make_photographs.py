"""Makes the bundled `photographs`: grey, small, from the folder `skimage/data` of scikit-image's wheel.

python -m train.datasets.make_photographs FOLDER [OUTPUT_FOLDER]
"""

import sys
from pathlib import Path

from PIL import Image

from train.datasets.fashion_scenes import PHOTOGRAPHS

SIDE = 320  # rows or columns, whichever are fewer
QUALITY = 60


def make(source: str | Path, output: str | Path) -> list[Path]:
  """Writes each photograph as a WebP file; returns their paths."""
  paths = []
  for name in sorted(name for names in PHOTOGRAPHS.values() for name in names):
    (found,) = Path(source).glob(f"{name}.*")
    photograph = Image.open(found).convert("L")
    scale = SIDE / min(photograph.size)
    size = tuple(round(side * scale) for side in photograph.size)
    paths.append(Path(output) / f"{name}.webp")
    photograph.resize(size, Image.Resampling.LANCZOS).save(paths[-1], quality=QUALITY, method=6)
  return paths


if __name__ == "__main__":
  make(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else Path(__file__).with_name("photographs"))
