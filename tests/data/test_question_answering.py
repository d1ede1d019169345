"""Questions in windows of their contexts, and answers chosen as the published scripts do."""

import math

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from labelled_texts import SQUAD, make_set, shown, write_squad
from support import raises

from train import data
from train.data.text import question_answering


def test_windows_cover_the_context_and_none_is_redundant():
  for length in range(60):
    for room in range(2, 12):
      for stride in range(1, room + 1):
        found = question_answering.windows(length, room, stride)
        covered = set().union(*(range(first, first + count) for first, count in found))
        assert covered == set(range(length))
        assert all(count == room for _, count in found[:-1]) and found[-1][1] <= room
        assert len(found) == 1 + max(0, math.ceil((length - room) / stride))
        best = question_answering.best_context(found, length)
        for position in range(length):  # as in the released code
          context = [
            min(position - f, f + n - 1 - position) + 0.01 * n if f <= position < f + n else -9 for f, n in found
          ]
          assert best[position] == int(np.argmax(context))


def question_data(folder, vocabulary, **kwargs):
  options = dict(dataset=str(folder), vocab_file=vocabulary, length=12, doc_stride=4, max_query_length=2)
  return data.make("question_answering", **options | dict(train_split="dev", eval_split="dev") | kwargs)


def test_answers_are_located_in_windows_and_recovered_as_written(tmp_path, vocabulary):
  write_squad(tmp_path / "dev.json")
  made = question_data(tmp_path, vocabulary)
  (batch,) = made.eval_batches(8)
  rows = [shown(batch, i) for i in range(int(batch["valid"].sum()))]
  # "." and "!" are unknown; 8 positions a window, and each begins 4 after the one before.
  assert rows[0] == "[CLS] is [SEP] paris is good [UNK] ann is in paris [SEP]"
  assert rows[1] == "[CLS] is [SEP] ann is in paris [UNK] [SEP]"
  assert rows[4] == "[CLS] no [SEP] a b c d e f g h [SEP]" and rows[5] == "[CLS] no [SEP] e f g h i b ##a ##b [SEP]"
  assert batch["start_positions"][:7].tolist() == [7, 3, 0, 0, 0, 8, 4] and batch["end_positions"][:7].tolist() == [
    7,
    3,
    0,
    0,
    0,
    10,
    6,
  ]
  placed, offsets = made.windows()
  for i, window in enumerate(placed):
    context = SQUAD[window.question][2]
    start, end = (batch[side][i] - window.position + window.first for side in ("start_positions", "end_positions"))
    if batch["start_positions"][i]:
      text = context[offsets[window.question][start][0] : offsets[window.question][end][1]]
      assert text == SQUAD[window.question][3][0][0]
  expected_shapes = data.kind("question_answering").shapes(
    dict(dataset="x", length=12, doc_stride=4, max_query_length=2), None, 8
  )
  assert {key: jax.ShapeDtypeStruct(a.shape, a.dtype) for key, a in batch.items()} == expected_shapes


def test_tfds_and_files_have_the_same_questions(tmp_path, vocabulary):
  write_squad(tmp_path / "dev.json")
  answers = tfds.features.Sequence({"text": tfds.features.Text(), "answer_start": np.int32})
  text = tfds.features.Text()
  features = dict(id=np.str_, title=text, context=text, question=text, answers=answers, is_impossible=np.bool_)
  rows = [
    dict(
      id=i,
      title="x",
      context=c,
      question=q,
      is_impossible=not found,
      answers=dict(text=[t for t, _ in found], answer_start=[s for _, s in found]),
    )
    for i, q, c, found in SQUAD
  ]
  make_set(tmp_path / "tfds", "squad/v2.0", features, dict(train=rows, validation=rows))
  made = data.make("question_answering", dataset="squad/v2.0", data_dir=str(tmp_path / "tfds"), vocab_file=vocabulary)
  assert made.questions() == question_data(tmp_path, vocabulary).questions() != []
  assert (made.length, made.doc_stride, made.max_query_length) == (384, 128, 64)


def test_a_misplaced_answer_is_searched_nearby(tmp_path, vocabulary):
  assert question_answering.find_answer("ab ab", "ab", 1) == (0, 2) and question_answering.find_answer(
    "ab ab", "ab", 2
  ) == (3, 5)
  assert question_answering.find_answer("ab", "x", 0) is None and question_answering.find_answer("ab", "ab", 7) is None
  write_squad(tmp_path / "dev.json", [*SQUAD, ("q4", "a", "b c d", [("x", 0)])])
  made = question_data(tmp_path, vocabulary)
  assert made.num_train == 7 and "1 answers" in made.about(2, 0)
  assert len(made.windows()[0]) == made.num_eval() == 8  # evaluation drops none


@pytest.mark.parametrize(
  ("content", "options", "named"),
  [
    ("[", {}, ("dev.json", "SQuAD")),
    ('{"data": [{"paragraphs": [{"qas": []}]}]}', {}, ("dev.json", "article 0", "paragraph 0", "'context'")),
    (
      '{"data": [{"paragraphs": [{"context": "", "qas": [{"id": "q", "answers": []}]}]}]}',
      {},
      ("dev.json", "'q'", "'question'"),
    ),
    ("{}", dict(doc_stride=8), ("data.doc_stride", 8, "1 to 7", 12)),
  ],
)
def test_an_invalid_squad_file_is_an_error(tmp_path, vocabulary, content, options, named):
  (tmp_path / "dev.json").write_text(content)
  with raises(ValueError, *named):
    question_data(tmp_path, vocabulary, **options).examples()


def logits_of(entries, length=12):
  logits = np.zeros((length, 2))
  for position, side, value in entries:
    logits[position, side] = value
  return logits


def test_the_best_answer_over_all_windows_is_chosen(tmp_path, vocabulary):
  write_squad(tmp_path / "dev.json")
  made = question_data(tmp_path, vocabulary)
  placed, offsets = made.windows()
  own, context = [w for w in placed if w.question == 0], SQUAD[0][2]
  choose = lambda logits, **options: question_answering.choose(logits, own, offsets[0], context, **options)  # noqa: E731
  # "Ann" begins the second window, where all before it is missing: the first shows it better, and it counts there.
  assert choose([logits_of([]), logits_of([(3, 0, 5), (3, 1, 5)])]).score < 10
  assert choose([logits_of([(7, 0, 5), (7, 1, 5)]), logits_of([])])[:2] == ("Ann", 10)
  assert choose([logits_of([(3, 0, 2), (5, 1, 2)]), logits_of([])]) == ("Paris is good", 4.0, -4.0)
  # The end is before the start, or too far after it.
  assert choose([logits_of([(5, 0, 3), (4, 1, 3)]), logits_of([])]).score == 3
  assert choose([logits_of([(3, 0, 3), (5, 1, 3)]), logits_of([])], max_answer_length=2).score == 3
  # [CLS] scores no answer higher in one window, and lower in the other.
  best = choose([logits_of([(0, 0, 3), (0, 1, 3), (3, 0, 2), (3, 1, 2)]), logits_of([(0, 0, 1), (0, 1, 1)])])
  assert best == ("Paris", 4.0, -2.0)
  # Neither question nor [SEP] is an answer.
  assert choose([logits_of([(1, 0, 9), (1, 1, 9), (11, 0, 9), (11, 1, 9)]), logits_of([])]).score == 0
