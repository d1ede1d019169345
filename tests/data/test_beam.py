"""A corpus made by Apache Beam is bit-identical. Needs the extra [beam]."""

from support import raises
from test_prepare import content, folder, prepared, small  # noqa: F401  (fixtures)

from train.data.text import prepare_corpus

OPTIONS = ["direct_num_workers=2", "direct_running_mode=multi_threading"]


def test_a_runner_makes_the_same_corpus_as_one_process(tmp_path, folder, small, monkeypatch):  # noqa: F811
  wanted = prepared(tmp_path, "one", folder, processes=1)
  made, make = [], prepare_corpus.make_chunk
  monkeypatch.setattr(
    prepare_corpus, "make_chunk", lambda job, number, chunk: (made.append(number), make(job, number, chunk))
  )
  found = prepared(tmp_path, "two", folder, runner="DirectRunner", beam_option=OPTIONS)
  assert content(found) == content(wanted) and len(set(made)) > 5


def test_errors_of_beam(tmp_path, folder, small):  # noqa: F811
  with raises(ValueError, "DirectRuner", "DirectRunner"):
    prepared(tmp_path, "one", folder, runner="DirectRuner")
  (folder / "c").write_bytes(b"abc \xe9")
  with raises(ValueError, "text/c", "UTF-8", 4, "0xe9"):
    prepared(tmp_path, "two", folder, runner="DirectRunner")
