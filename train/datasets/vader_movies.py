"""Snippets of movie reviews that people rated (Hutto & Gilbert 2014), from PyPI's archive of vaderSentiment.

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2 -d FOLDER
    zoo prepare vader_movies --source FOLDER --data-dir DIR

Who rates from -4 to 4 says more than good or bad: the label is for snippets whose mean rating is beyond 0.5 on either
side, and the others are left out. The snippets are parts of reviews by others, and so they do not travel with the code.
"""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

ARCHIVE = "vaderSentiment-*.tar.gz"
INNER, FILE = "additional_resources/hutto_ICWSM_2014.tar.gz", "movieReviewSnippets_GroundTruth.txt"
CLEAR = 0.5
# Of ten snippets one is for validation and one for the test.
TENTHS = ("val", "test", *["train"] * 8)


def read_snippets(archive: str | Path) -> list[tuple[str, float, str]]:
  """Number, mean rating and text of every snippet.

  Raises:
    OSError: the archive has not the file, or a line of it is no snippet.
  """
  try:
    with tarfile.open(archive) as outer:
      inner = next(member for member in outer.getmembers() if member.name.endswith(INNER))
      with tarfile.open(fileobj=io.BytesIO(outer.extractfile(inner).read())) as files:
        member = next(member for member in files.getmembers() if member.name.endswith(FILE))
        lines = files.extractfile(member).read().decode("utf-8").splitlines()
    found = [line.split("\t") for line in lines if line.strip()]
    return [(number, float(rating), text.strip()) for number, rating, text in found]
  except (tarfile.TarError, StopIteration, ValueError) as error:
    raise OSError(f"{archive} has no {INNER} with {FILE}, as version 3.3.2 has it: {error!r}") from error


def split_of(text: str) -> str:
  """The split that a snippet is in, by its text: a snippet that is there twice is on one side."""
  tenth = int(hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest(), 16) % 10
  return TENTHS[tenth]


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Splits "train", "val" and "test"."""

  name = "vader_movies"
  VERSION = tfds.core.Version("1.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Name the folder of the archive: pip download --no-deps --no-binary :all: vaderSentiment==3.3.2 -d FOLDER, and "
    "then --source FOLDER."
  )

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="Snippets of movie reviews, with what people thought of their sentiment.",
      features=tfds.features.FeaturesDict(
        {
          "text": tfds.features.Text(),
          "label": tfds.features.ClassLabel(names=["negative", "positive"]),
          "rating": np.float32,
          "number": tfds.features.Text(),
        }
      ),
      supervised_keys=("text", "label"),
      disable_shuffling=True,
      homepage="https://github.com/cjhutto/vaderSentiment",
    )

  def _split_generators(self, dl_manager):
    archives = sorted(Path(dl_manager.manual_dir).glob(ARCHIVE))
    if not archives:
      raise OSError(f"{dl_manager.manual_dir} has no {ARCHIVE}. {self.MANUAL_DOWNLOAD_INSTRUCTIONS}")
    snippets = read_snippets(archives[-1])
    return {name: self._generate_examples(snippets, name) for name in ("train", "val", "test")}

  def _generate_examples(self, snippets: list[tuple[str, float, str]], split: str) -> Iterator[tuple[int, dict]]:
    for number, rating, text in snippets:
      if abs(rating) > CLEAR and split_of(text) == split:
        yield int(number), {"text": text, "label": int(rating > 0), "rating": rating, "number": number}
