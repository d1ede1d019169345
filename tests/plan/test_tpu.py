"""The real TPU compiler, which needs no TPU, compiles what would run there."""

import io
import itertools
import json
import math

import jax
import jax.numpy as jnp
import pytest
import recorded_cycles
from jax.sharding import NamedSharding
from rich.console import Console
from support import SHALLOW, assert_names, raises

import zoo
from train import doctor, sharding
from train.config import defaults
from train.experiment import Experiment
from train.plan import compiler, macs, memory, models, report
from train.plan.collectives import collectives
from zoo import decoding

SHAPE = "v5e:2x2"
# Each device's examples: twice a prime that no parameter's size has, so whatever is a multiple of it carries examples.
LOCAL = 26
MESHES = {
  "data": dict(data=4, fsdp=1, tensor=1),
  "fsdp": dict(data=1, fsdp=4, tensor=1),
  "tensor": dict(data=2, fsdp=1, tensor=2),
  "fsdp and tensor": dict(data=1, fsdp=2, tensor=2),
}


# BERT's other heads, on one layer: more of the model, the data and the objective that train it.
HEADS = {
  "sequence_classification": (
    dict(num_classes=3),
    dict(name="sequence_classification", text="any"),
    "sequence_classification",
  ),
  "token_classification": (dict(num_classes=5), dict(name="token_classification"), "token_classification"),
  "question_answering": ({}, dict(name="question_answering", doc_stride=4, max_query_length=5), "question_answering"),
}


def compiled(name, mesh_name, **overrides):
  """The train step of a model on a mesh: its collectives, the mesh, the parameters' shapes, the memory, the cycles.

  A head of BERT may stand for a model.
  """
  name, head = ("bert/test", name) if name in HEADS else (name, None)
  chip, devices = compiler.tpu_devices(SHAPE)
  mesh = sharding.make_mesh(**MESHES[mesh_name], devices=devices)
  way = sharding.Jit(mesh, zoo.family(name).LOGICAL_AXES)
  config = defaults()
  family = name.partition("/")[0]
  config.model = dict(name=name, dtype="bfloat16", **SHALLOW.get(family, {}) | overrides)
  if hasattr(zoo.create(name).config, "dropout_rate"):
    config.model.dropout_rate = 0.1
  if family == "kernel_regression":
    config.data = dict(name="regression", dataset="engel")
  elif family in ("vit", "mae", "hybrid", "patch_prediction", "convnext", "swin", "simmim"):
    config.data = dict(name="image_classification", image_size=zoo.create(name).config.image_size)
  elif family == "segmenter":
    config.data = dict(name="semantic_segmentation", dataset="any", image_size=zoo.create(name).config.image_size)
  elif family == "bert":
    config.data = dict(name="masked_lm_corpus", dataset="corpus/any", length=16, sequences=3)
  else:
    config.data = dict(name="translation", dataset="verses_en_es", source_length=11, target_length=9)
  classify = dict(name="image_classification", label_smoothing=0.1)
  config.objective = {
    **dict.fromkeys(("vit", "hybrid", "convnext", "swin"), classify),
    "mae": dict(name="mae"),
    "patch_prediction": dict(name="patch_prediction"),
    "simmim": dict(name="simmim", mask_patch_size=8),
    "segmenter": dict(name="semantic_segmentation"),
    "kernel_regression": dict(name="regression"),
    "nat": dict(name="nat", label_smoothing=0.1),
    "bert": dict(name="mlm_nsp", max_predictions=5, whole_words=True),
  }.get(family, dict(name="seq2seq", label_smoothing=0.1))
  if head:
    more, data, objective = HEADS[head]
    config.model.update(head=head, depth=1, **more)
    config.data = dict(dataset="any", vocab_file="any", length=16, **data)
    config.objective = dict(name=objective)
  config.optimizer = dict(name="adamw", learning_rate=1e-3, weight_decay=0.1, grad_clip_norm=1.0)
  config.batch_size = LOCAL * way.data_devices
  if family == "vit":
    # What is the same whatever the model is compiled with one.
    config.model.drop_path_rate, config.ema_decay, config.objective = 0.1, 0.99, classify | dict(mixup=0.8, cutmix=1.0)
  made = Experiment(config, parallel=way, load_data=False)
  arguments = report.abstract_arguments(made, mesh)
  params = arguments[0].params
  step = way.compile(made.make_step())
  program, text, cycles = compiler.compile_and_count(step, chip, macs.needed_jaxpr(step, *arguments), *arguments)
  return collectives(text), mesh, jax.tree.leaves(params), memory.hbm(program, chip), cycles


def moved(found, *ops, axis=None):
  """How many numbers the collectives of these kinds make or take, all together."""
  wanted = [c for c in found if c.op in ops and (axis is None or c.crosses(*axis))]
  return sum(c.elements * c.count for c in wanted)


# The one parameter of a kernel is less than the metrics, which cross devices too: it has a test of its own.
MODELS = [name for name in zoo.list_models("*/test") if name != "kernel_regression/test"]


def check_examples_stay_where_they_are(found, mesh, params, memory):
  assert not any(p.size % LOCAL == 0 for p in params), "the test cannot distinguish examples from parameters"
  between = [c for c in found if c.crosses(mesh, "data") or c.crosses(mesh, "fsdp")]
  assert between and not [c for c in between if any(size % LOCAL == 0 for size in c.sizes)]
  # The old state's memory becomes the new one's.
  assert memory.fits and memory.aliased > 0.95 * memory.outputs


def check_data_parallel_sums_gradients_and_hardly_more(name, found, mesh, params):
  assert {c.op for c in found} == {"all-reduce"}
  # Of what a device holds.
  numbers, config = sum(math.prod(p.sharding.shard_shape(p.shape)) for p in params), zoo.create(name).config
  # The table of embeddings and tied logits has two gradients, in float32 and in bfloat16.
  tied = config.vocab_size * config.width if hasattr(config, "vocab_size") else 0
  # Equal gradients, of the class token and of its position, are summed once.
  assert 0.99 * numbers <= moved(found, "all-reduce", axis=(mesh, "data")) < 1.05 * numbers + tied


def check_fsdp_gathers_parameters_and_sums_gradients(name, found, mesh, params):
  sharded = sum(p.size for p in params if p.ndim > 1)  # vectors are not sharded
  # Once for the forward pass and at most once more for the backward pass.
  assert 0.9 * sharded <= moved(found, "all-gather") <= 2 * sharded
  assert moved(found, "all-reduce", "reduce-scatter", "collective-permute") >= 0.9 * sum(p.size for p in params)


def check_tensor_parallel_sums_activations(name, found, mesh, params):
  between = [c for c in found if c.crosses(mesh, "tensor")]
  if name.startswith("seq2seq/"):
    assert not between  # nothing of a recurrent model is sharded along this axis, see zoo/partitioning.py
    return
  assert {c.op for c in between} == {"all-reduce"}
  # Megatron (Shoeybi et al. 2019, 3): a sum for each sublayer forward, and one backward, or three where XLA does not
  # add the gradients through q, k and v first. It may send several arrays at once, so it is these that are counted.
  config = zoo.create(name, **SHALLOW.get(name.partition("/")[0], {})).config
  if name.startswith("convnext/"):
    sublayers = sum(config.depths)  # MLPs; depthwise convolutions need no other features
  else:
    decoder = 3 if name.startswith(("transformer/", "nat/")) else 2
    sublayers = 2 * config.depth + decoder * getattr(config, "decoder_depth", 0)
  forward, backward = (
    sum(c.count for c in between for size in c.sizes if size % LOCAL == 0 and ("transpose(" in c.source) == back)
    for back in (False, True)
  )
  assert forward == sublayers and sublayers <= backward <= 2 * sublayers


CHECKS = {
  "data": (check_data_parallel_sums_gradients_and_hardly_more,),
  "fsdp": (check_fsdp_gathers_parameters_and_sums_gradients,),
  "tensor": (check_data_parallel_sums_gradients_and_hardly_more, check_tensor_parallel_sums_activations),
}


CASES = [
  ("vit/test", "data"),
  *itertools.product(MODELS, ("fsdp", "tensor")),
  *((name, "fsdp and tensor") for name in HEADS),
]


# One test for all that is asked of a program, since to compile it takes nearly all the time.
@pytest.mark.slow
@pytest.mark.parametrize(("name", "mesh_name"), CASES)
def test_a_step_on_a_mesh(name, mesh_name):
  found, mesh, params, memory, cycles = compiled(name, mesh_name)
  recorded_cycles.check(f"{name}, {mesh_name}", cycles)
  check_examples_stay_where_they_are(found, mesh, params, memory)
  for check in CHECKS.get(mesh_name, ()):
    check(name, found, mesh, params)


@pytest.mark.parametrize("mesh_name", ["data", "fsdp", "tensor"])
def test_kernel_regression_sums_scalars(mesh_name):
  found, mesh, params, memory, _ = compiled("kernel_regression/test", mesh_name)
  between = [c for c in found if c.crosses(mesh, "data") or c.crosses(mesh, "fsdp")]
  # The gradient, the loss, its weight and a metric; the points themselves stay where they are.
  assert {c.op for c in found} == {"all-reduce"} and moved(between, "all-reduce") == moved(found, "all-reduce")
  assert [p.size for p in params] == [1] and {size for c in found for size in c.sizes} == {1}
  assert 2 <= moved(found, "all-reduce") <= 4 and memory.fits


# A size at which XLA finds it worth while to shard activations along the width instead of gathering parameters.
LARGER = dict(width=256, num_heads=2, mlp_dim=1024, scan=True)


@pytest.mark.slow
def test_fsdp_is_data_parallel_at_any_size():
  found, _, params, _, _ = compiled("vit/test", "fsdp", **LARGER)
  assert not [c for c in found if any(size % LOCAL == 0 for size in c.sizes)]
  sharded = sum(p.size for p in params if p.ndim > 1)
  assert moved(found, "reduce-scatter") >= 0.9 * sharded


@pytest.mark.slow
def test_gradients_of_an_accumulated_batch_cross_devices_once():
  """By the kernels, which shard_map wraps once more."""
  made = config(width=32, num_heads=2, mlp_dim=48, depth=2)
  made.batch_size, made.grad_accum_steps = 4 * 4 * LOCAL, 4
  found = report.plan(made, SHAPE)
  count, size = found.traffic()["all-reduce"]
  assert "short_attention" in found.rows()["  kernels"]
  # Sums of float32 gradients and of few numbers beside them.
  assert count <= 2 and 3.96 * found.parameters <= size < 4.1 * found.parameters


LENGTH = 9  # of what is decoded


@pytest.mark.parametrize("mesh_name", ["data", "tensor"])
@pytest.mark.parametrize(("method", "options"), [(decoding.greedy, {}), (decoding.beam_search, dict(beam_size=3))])
def test_decoding_needs_no_communication_of_examples(method, options, mesh_name):
  """Devices decode their own examples; they exchange in each step who continues, and at the end the results."""
  axes = zoo.family("transformer").LOGICAL_AXES
  way = sharding.Jit(sharding.make_mesh(**MESHES[mesh_name], devices=compiler.tpu_devices(SHAPE)[1]), axes)
  model = zoo.create("transformer/test", dtype="bfloat16")
  c, size = model.config, LOCAL * way.data_devices
  source = jax.ShapeDtypeStruct((size, 11), jnp.int32, sharding=NamedSharding(way.mesh, sharding.BATCH))
  variables = way.abstract(jax.eval_shape(model.init, {"params": jax.random.key(0)}, source, source))

  def run(variables, batch):
    parts = decoding.decode_step_of(model, variables, batch["source"], LENGTH)
    decoded = method(
      *parts,
      bos_token_id=c.bos_token_id,
      eos_token_id=c.eos_token_id,
      pad_token_id=c.pad_token_id,
      max_length=LENGTH,
      **options,
    )
    return decoded.sequences_BUT, decoded.scores_BU

  program = compiler.compile_for(way.compile_eval(run), variables, dict(source=source))
  found = collectives(program.as_text())
  between = [one for one in found if one.crosses(way.mesh, "data")]
  assert sorted(one.sizes for one in between) == [(1,), (size,), (size * LENGTH,)]
  across = [one for one in found if one.crosses(way.mesh, "tensor")]
  if mesh_name == "tensor":  # a sum for each sublayer, once in the encoder and at each step in the decoder
    assert {one.op for one in across} == {"all-reduce"}
    assert sum(one.count for one in across) == 2 * c.depth + 3 * c.decoder_depth * LENGTH
  assert len(found) == len(between) + len(across)


# ---- zoo plan


def config(**model):
  made = defaults()
  made.model = dict(name="vit/test", **model)
  made.data = dict(name="image_classification", image_size=zoo.create("vit/test", **model).config.image_size)
  made.objective = dict(name="image_classification")
  made.optimizer = dict(name="adamw", learning_rate=1e-3, warmup=0.1)
  made.batch_size = 64
  made.epochs = 2.0
  return made


def test_plan_of_a_config():
  found = report.plan(config(dtype="bfloat16"), "v5e:2x2")
  assert found.chips == 4 and found.mesh == {"data": 4, "fsdp": 1, "tensor": 1}
  assert found.parameters == 15_247 and found.memory.fits
  # Backward costs twice the forward pass, less the gradient for the pixels, which nobody asks for.
  forward = 64 * models.describe_models("vit/test")[0].macs
  assert 2.9 * forward < found.macs < 3 * forward
  assert found.traffic()["all-reduce"][1] > 2 * 15_000
  console = Console(file=io.StringIO(), width=120)
  console.print(found.table())
  for words in ("vit/test on v5e:2x2", "15,247", "fits,", "of 15.75 GiB", "all-reduce"):
    assert words in console.file.getvalue()
  assert json.loads(json.dumps(found.as_dict()))["memory"]["fits"]


def test_plan_of_what_does_not_fit():
  large = config()
  large.batch_size = 2**24
  found = report.plan(large, "v5e:2x2")
  assert not found.memory.fits and found.memory.peak > 2**34 and not found.collectives
  console = Console(file=io.StringIO(), width=120)
  console.print(found.table())
  (largest, size), printed = found.largest[0], console.file.getvalue()
  # The batch alone is 21 GiB, of which a chip has a quarter; what layers keep for the backward pass is more.
  assert size > 2**34 and "/block_*/" in largest
  assert_names(printed, "does not fit", "--search", largest.split()[-2], f"{size / 2**30:.3f} GiB")


def test_another_version_of_the_compiler_is_refused(monkeypatch):
  wanted = doctor.Problem("libtpu is 0.0.1; jax 0.9 needs libtpu==0.0.9.*", "pip install 'jax[tpu]==0.9'")
  monkeypatch.setattr(doctor, "version_problems", lambda: [doctor.Problem("numpy is 1", "pip"), wanted])
  with raises(ValueError, wanted.problem, wanted.remedy):
    report.plan(config(), SHAPE)


def test_plan_errors():
  for topology, named in (("v6:2x2", "'v6e'"), ("v5e", "v5e:2x4"), ("v5e:3x7", "'v5e:3x7'")):
    with raises(ValueError, named):
      report.plan(config(), topology)
  uneven = config()
  uneven.batch_size = 66
  with raises(ValueError, 66, "4 devices"):
    report.plan(uneven, "v5e:2x2")
