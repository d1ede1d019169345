"""Makes the bundled `verses_en_es`: the World English Bible and the Reina-Valera of 1909, verse by verse.

pip install pysword; apt-get download sword-text-web sword-text-sparv; for f in *.deb; do dpkg -x $f FOLDER; done
python -m train.datasets.make_verses_en_es FOLDER [OUTPUT_FOLDER]
"""

import functools
import html
import random
import re
import sys
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from train.data.text import tokenizers
from train.datasets.make_fashion_mnist_small import repack

MODULES = {"en": "engWEB2015eb", "es": "spaRV1909eb"}
# In these chapters one translation counts verses otherwise than the other, so that verses of one number are not each
# other's translation. Found by the words that verses of one number and of neighbouring numbers share.
COUNTED_OTHERWISE = {
  *(("Num", 13), ("Num", 30), ("Judg", 14), ("1Sam", 24), ("1Kgs", 22), ("1Chr", 21), ("2Chr", 33)),
  *(("Job", 39), ("Job", 40), ("Hos", 12), ("Jonah", 2)),
}
# A verse this many times as long as its translation has something that the other has not, such as a subscription.
RATIO = 2.2
# Of so many chapters in a row one is for validation and one for the test: about 1,000 verses each.
CHAPTERS = 31
VOCABULARY = 4000

Chapter = tuple[str, int]
Verse = tuple[str, dict[str, str]]  # "Gen 1:1", and the text by language


def plain(osis: str) -> str:
  """The text of a verse in OSIS markup, without footnotes, names of speakers and an appended glossary."""
  text = osis.partition('<div type="glossary"')[0]
  text = re.sub(r"<(note|speaker)\b.*?</\1>", " ", text, flags=re.DOTALL)
  text = re.sub(r"</?(w|q|seg|transChange)\b[^>]*>", "", text)  # within a line; other tags end one
  text = unicodedata.normalize("NFC", html.unescape(re.sub("<[^>]*>", " ", text)))
  text = re.sub(r" +([,.;:?!)”’])", r"\1", " ".join(text.split()))
  return re.sub(r"([“‘(¿¡]) +", r"\1", text)


def read_module(folder: str | Path, name: str) -> dict[tuple[Chapter, int], str]:
  """The text of every verse of a module that is not empty, by chapter and number, in the order of the book."""
  from pysword.modules import SwordModules

  modules = SwordModules(str(Path(folder) / "usr/share/sword"))
  modules.parse_modules()
  bible = modules.get_bible_from_module(name)
  # It unpacks a whole book for each verse, if it is let.
  bible._decompressed_text = functools.lru_cache(maxsize=2)(bible._decompressed_text)
  verses = {}
  for book in [book for part in bible.get_structure().get_books().values() for book in part]:
    for chapter in range(1, book.num_chapters + 1):
      for number, osis in enumerate(bible.get_iter(books=book.name, chapters=chapter, clean=False), 1):
        if text := plain(osis):
          verses[(book.osis_name, chapter), number] = text
  return verses


def align(en: dict[tuple[Chapter, int], str], es: dict[tuple[Chapter, int], str]) -> dict[Chapter, list[Verse]]:
  """Verses that are in both and translate each other, by chapter."""
  chapters: dict[Chapter, list[Verse]] = {}
  for (chapter, number), text in en.items():
    pair = {"en": text, "es": es.get((chapter, number), "")}
    short, long = sorted(map(len, pair.values()))
    if chapter not in COUNTED_OTHERWISE and long <= RATIO * short:
      chapters.setdefault(chapter, []).append((f"{chapter[0]} {chapter[1]}:{number}", pair))
  return chapters


def split(chapters: Iterable[Chapter]) -> dict[str, list[Chapter]]:
  """Whole chapters, since neighbouring verses resemble each other; distributed over the books, since those differ."""
  chapters, draw = list(chapters), random.Random(0)
  drawn = [draw.sample(chapters[i : i + CHAPTERS], 2) for i in range(0, len(chapters) - CHAPTERS + 1, CHAPTERS)]
  val, test = ({pair[i] for pair in drawn} for i in (0, 1))
  return {
    "train": [c for c in chapters if c not in val | test],
    "val": [c for c in chapters if c in val],
    "test": [c for c in chapters if c in test],
  }


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """English and Spanish verses in the order of the book."""

  name = "verses_en_es"
  VERSION = tfds.core.Version("1.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = "Name the folder of the unpacked Debian packages."

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="The World English Bible and the Reina-Valera of 1909, verse by verse, split by chapters.",
      features=tfds.features.FeaturesDict(
        {"translation": tfds.features.Translation(languages=list(MODULES)), "reference": tfds.features.Text()}
      ),
      disable_shuffling=True,  # neighbours share words: compressed together they take less room
      homepage="https://ebible.org",
      license="Public domain",
    )

  def _split_generators(self, dl_manager):
    chapters = align(*(read_module(dl_manager.manual_dir, name) for name in MODULES.values()))
    parts = split(chapters)
    return {name: self._generate_examples([v for c in part for v in chapters[c]]) for name, part in parts.items()}

  def _generate_examples(self, verses: list[Verse]) -> Iterator[tuple[int, dict]]:
    for i, (reference, pair) in enumerate(verses):
      yield i, {"translation": pair, "reference": reference}


def make(source: str, output: str | Path) -> Path:
  """Builds the set in `output/verses_en_es/1.0.0`, and trains its tokenizer."""
  builder = Builder(data_dir=output, file_format="array_record")
  with tempfile.TemporaryDirectory() as scratch:
    builder.download_and_prepare(
      download_dir=scratch, download_config=tfds.download.DownloadConfig(manual_dir=source, num_shards=1)
    )
  folder = Path(builder.data_path)
  texts = (text for example in builder.as_data_source("train") for text in example["translation"].values())
  tokenizers.save(tokenizers.train_tokenizer((text.decode() for text in texts), VOCABULARY), folder)
  for shard in folder.glob("*.array_record-*"):
    # Many verses compressed together take a third of the room; all English before all Spanish, a tenth less.
    repack(shard, "group_size:1024,transpose:true,brotli:11")
  return folder


if __name__ == "__main__":
  # The set keeps the name of the module that made it, which is not "__main__".
  from train.datasets import make_verses_en_es

  print(make_verses_en_es.make(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else Path(__file__).parent))
