"""Uses of a trained run: its translations as targets, the mean of its checkpoints, its encoder."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import assert_names, raises

import zoo
from train import cli, data
from train.checkpoint import Checkpoints
from train.inference import translate
from train.step import State
from zoo.partitioning import flatten
from zoo.weights import WeightsError, average, load_into
from zoo.weights.sources import read

pytestmark = pytest.mark.usefixtures("one_device")


def variables(model, seed):
  """All parameters random, so that none looks like another model's."""
  shapes = jax.eval_shape(model.init, {"params": jax.random.key(0)}, *zoo.family("transformer").inputs(model.config, 1))
  draw = np.random.default_rng(seed)
  return jax.tree.map(lambda s: draw.normal(size=s.shape).astype(np.float32), shapes)


# ---- a teacher's translations


def pairs(**kwargs):
  return data.make(
    "translation", dataset="verses_en_es", **dict(train_split="train[:40]", eval_split="val[:9]") | kwargs
  )


def targets(corpus, tokenizer):
  return [tokenizer.decode(corpus.target[i].tolist()) for i in range(len(corpus))]


def test_training_uses_the_targets_of_a_file_and_evaluation_its_own(tmp_path):
  file = tmp_path / "teacher.es"
  lines = [f"verso {i}\u2028 fin" for i in range(40)]  # a separator of Unicode ends no line
  lines[3] = ""
  file.write_text("\n".join(lines) + "\n", encoding="utf-8")
  plain, taught = pairs(), pairs(train_targets=str(file))
  sources = [source for source, _ in plain.texts("train[:40]")]
  tokenizer = taught.tokenizer
  assert targets(taught.corpus(), tokenizer) == lines[:3] + lines[4:]
  ours = [tokenizer.decode(taught.corpus().source[i].tolist()) for i in range(39)]
  assert ours == sources[:3] + sources[4:] and taught.counts()["empty"] == 1
  for split in ("val[:9]", "train[:40]"):
    assert targets(taught.corpus(split), tokenizer) == targets(plain.corpus(split), tokenizer)
  assert taught.references("train[:40]") == plain.references("train[:40]")


def test_every_example_needs_its_line(tmp_path):
  file = tmp_path / "teacher.es"
  file.write_text("uno\n" * 39)
  with raises(ValueError, "teacher.es", 39, "'verses_en_es'", "'train[:40]'", 40):
    pairs(train_targets=str(file)).corpus()
  with raises(ValueError, "data.train_targets", "nowhere"):
    pairs(train_targets=str(tmp_path / "nowhere")).corpus()


def test_lines_are_decoded_by_length_and_come_back_in_order():
  """With a translator that returns the source."""
  here, shapes = pairs(source_length=40), []
  parallel = types.SimpleNamespace(data_devices=4, put_batch=lambda batch: batch)
  run = types.SimpleNamespace(data=here, parallel=parallel, model=zoo.create("transformer/test"))

  class Echo:
    def __init__(self):
      self.experiment = run

    def __call__(self, variables, batches, sources):
      rows = []
      for batch in batches:
        shapes.append(batch["source_ids"].shape)
        rows += batch["source_ids"][batch["valid"]].tolist()
      return translate.detokenise(here, rows, sources), 0.0

  texts = [source for source, _ in here.texts("train[:40]")]
  texts[7] = " "
  long = [i for i, text in enumerate(texts) if len(here.tokenizer.encode(text).ids) > 40]
  assert long
  found = translate.translate_lines(Echo(), {}, texts, batch_size=6, strict=False)
  assert found == ["" if i in [7, *long] else text for i, text in enumerate(texts)]
  widths = [width for _, width in shapes]
  assert widths == sorted(widths) and set(widths) <= {10, 20, 30, 40} and len(set(widths)) > 1
  assert {rows for rows, _ in shapes} == {8}  # shared by four devices
  with pytest.raises(ValueError) as error:
    translate.translate_lines(Echo(), {}, texts)
  faults = str(error.value).splitlines()
  assert len(faults) == 1 + len(long) and any("line 8 " in line and "empty" in line for line in faults)
  assert any(f"line {long[0] + 1} " in line for line in faults)
  assert translate.translate_lines(Echo(), {}, [" "], strict=False) == [""]


# ---- the mean of checkpoints


def write_run(workdir, trees, **config):
  checkpoints = Checkpoints(workdir, max_to_keep=len(trees))
  for step, tree in enumerate(trees, 1):
    state = State(jnp.int32(step), tree["params"], {}, (), None, jnp.int32(0))
    checkpoints.save(state, dict(step=step, config=dict(model=dict(name="transformer/test", **config))))
  checkpoints.close()


def test_an_average_is_the_mean_of_the_last(tmp_path):
  model = zoo.create("transformer/test", depth=1)
  trees = [variables(model, seed) for seed in range(4)]
  write_run(tmp_path / "run", trees, depth=1)
  file = tmp_path / "mean.safetensors"
  assert average(tmp_path / "run", file, last=3) == [2, 3, 4]
  loaded, mean = zoo.load(file)
  assert loaded.config == model.config
  kept = [flatten(tree) for tree in trees[1:]]
  for path, value in flatten(mean).items():
    np.testing.assert_allclose(value, np.mean([tree[path] for tree in kept], 0, np.float64), rtol=1e-6, err_msg=path)


def test_the_average_of_equal_checkpoints_is_bit_identical(tmp_path):
  tree = variables(zoo.create("transformer/test", depth=2), 0)
  scanned = {"params": zoo.layers.stack.stack_params(tree["params"])}
  write_run(tmp_path / "run", [scanned] * 3, depth=2, scan=True)
  cli.main(["average", str(tmp_path / "run"), "--last", "3", "--out", str(tmp_path / "mean.safetensors")])
  found = read(tmp_path / "mean.safetensors").tensors
  for path, value in flatten(tree).items():
    np.testing.assert_array_equal(found[path], value, err_msg=path)


def test_invalid_averages(tmp_path, capsys):
  write_run(tmp_path / "run", [variables(zoo.create("transformer/test"), 0)] * 2)
  arguments = ["average", str(tmp_path / "run"), "--out", str(tmp_path / "mean.safetensors"), "--last"]
  assert cli.main([*arguments, "5"]) == 2
  message = capsys.readouterr().err
  assert_names(message, "1, 2", "last is 5", "checkpoint.max_to_keep")
  assert cli.main([*arguments, "0"]) == 2
  assert cli.main(["average", str(tmp_path / "nowhere"), *arguments[2:], "1"]) == 2
  assert "nowhere" in capsys.readouterr().err and not (tmp_path / "mean.safetensors").exists()


# ---- another model's encoder


@pytest.mark.parametrize(
  ("name", "overrides", "reinit"),
  [
    ("nat/test", dict(decoder_depth=2), ("decoder/.*", "length/.*")),
    ("nat/test", dict(length_prediction="none", decoder_depth=1, scan=True), "decoder/.*"),
    ("transformer/test", dict(decoder_depth=1), "decoder/.*"),
    ("transformer/test", dict(decoder_depth=4, position_embedding="t5"), ("decoder/.*", ".*_bias/buckets")),
  ],
)
def test_an_encoder_is_loaded_alone(name, overrides, reinit, tmp_path):
  teacher = zoo.create("transformer/test")
  weights, file = variables(teacher, 0), tmp_path / "teacher.safetensors"
  zoo.save(file, "transformer/test", {}, weights)
  model = zoo.create(name, **overrides)
  begun = variables(model, 1)
  loaded = load_into(model, begun, file, ignore="params/decoder/.*", reinit=reinit)
  ours, before, theirs = (
    flatten({"params": zoo.layers.stack.unstack_params(t["params"])}) for t in (loaded, begun, weights)
  )
  taken = {path for path in ours if path.startswith(("params/encoder/", "params/embed/"))}
  assert len(taken) == len([path for path in theirs if "/decoder/" not in path]) > 30
  for path, value in ours.items():
    np.testing.assert_array_equal(value, theirs[path] if path in taken else before[path], err_msg=path)
  # Nothing is ignored or reinitialised that is not named.
  with pytest.raises(WeightsError) as error:
    load_into(model, begun, file)
  named = " ".join(error.value.faults)
  assert "decoder/block_0" in named and ("length/kernel" in named) == ("length/.*" in reinit)


# ---- all together, by the command


TINY = [
  "model.width=16 model.depth=1 model.decoder_depth=1 model.mlp_dim=16 model.num_heads=2 model.scan=False",
  "data.train_split=train[:64] data.eval_split=val[:8] data.batching=pad data.source_length=40 data.target_length=40",
  "model.max_length=40 model.remat=none batch_size=16 epochs=0.0 steps=3 checkpoint.every_steps=1",
  "checkpoint.max_to_keep=2",
  "evals.val.every_steps=0 evals.test.split=test[:8] evals.test.batch_size=8 plots=()",
]


def zoo_command(*words):
  assert cli.main([*words]) == 0, words


@pytest.mark.slow
def test_from_a_teacher_to_a_student(tmp_path, capsys):
  tiny = " ".join(TINY).split()
  teacher, student, file = tmp_path / "teacher", tmp_path / "student", tmp_path / "mean.safetensors"
  zoo_command("train", "translate_en_es", *tiny, "--workdir", str(teacher))

  # The mean of its checkpoints, by its config and by its own work directory.
  zoo_command("average", str(teacher), "--last", "2", "--out", str(file))
  found = []
  for number, source in enumerate(("translate_en_es", str(teacher))):
    written = tmp_path / f"{number}.json"
    words = ["eval", source, *([] if number else tiny), f"init.path={file}", "val", "--json", str(written)]
    zoo_command(*words)
    found.append(json.loads(written.read_text())["val"])
  assert found[0] == found[1]
  zoo_command("eval", str(teacher), "val", "--json", str(written))
  assert json.loads(written.read_text())["val"]["loss"] != found[0]["loss"]

  # Its translations of what it learned from, by greedy search: an empty line where a source is too long for it.
  lines = tmp_path / "distilled.es"
  zoo_command(
    "translate", str(teacher), f"init.path={file}", "--split", "train[:64]", "--beam-size", "1", "--out", str(lines)
  )
  distilled = lines.read_text().split("\n")[:-1]
  assert len(distilled) == 64 and 0 < sum(map(bool, distilled)) < 64
  assert f"{distilled.count('')} of 64 " in capsys.readouterr().err

  # A student of another kind, with its encoder.
  of_init = f"init.path={teacher} init.ignore=params/decoder/.* init.reinit=('decoder/.*','length/.*')".split()
  words = [
    "optimizer.learning_rate=0.0",
    "data.too_long=truncate",
    f"data.train_targets={lines}",
    *of_init,
    "--workdir",
    str(student),
  ]
  zoo_command("train", "nat_en_es", *tiny, *words)
  ours, theirs = read(student).tensors, read(teacher).tensors
  for path, value in theirs.items():
    if path.startswith(("params/encoder/", "params/embed/")):
      np.testing.assert_array_equal(ours[path], value, err_msg=path)
  translated = tmp_path / "translated.json"
  zoo_command(
    "translate", str(student), "In the beginning.", "And he said.", "--beam-size", "2", "--json", str(translated)
  )
  assert [row["source"] for row in json.loads(translated.read_text())] == ["In the beginning.", "And he said."]
  assert cli.main(["translate", str(student), "text", "--split", "train"]) == 2
  assert_names(capsys.readouterr().err, "TEXT", "--file FILE", "--split SPLIT")
