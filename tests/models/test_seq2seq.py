"""Recurrent sequence to sequence: dependence of outputs on inputs, packing, attention by its formulas, pointers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import raises

import zoo
from zoo import decoding, partitioning
from zoo.layers import pointer
from zoo.layers.sequence_info import SequenceInfo
from zoo.models import seq2seq

SOURCE = np.random.default_rng(0).integers(4, 29, (4, 7)).astype(np.int32)
TARGET = np.random.default_rng(1).integers(4, 29, (4, 6)).astype(np.int32)
SMALL = dict(width=8, embed_dim=6, attention_dim=5)
KINDS = {
  "none": dict(attention="none", bidirectional=False, cell="lstm"),
  "none, both ways": dict(attention="none", cell="lstm", depth=1),
  "additive": {},
  "dot": dict(attention="dot", attention_query="current_state", bidirectional=False, depth=1),
  "general": dict(
    attention="general", attention_query="current_state", input_feeding=True, cell="lstm", depth=1, tie_embeddings="all"
  ),
  "copy": dict(
    attention_query="current_state", depth=1, head="copy", copy_slots=2, tie_embeddings="target", head_bias=True
  ),
  "pointer": dict(attention_query="current_state", depth=1, head="pointer", tie_embeddings="all"),
}


def create(kind, **overrides):
  return zoo.create("seq2seq/test", **SMALL | KINDS[kind] | overrides)


@functools.cache
def drawn(kind, **overrides):
  """A small model, and parameters for it that are all random."""
  model = create(kind, **overrides)
  shapes = jax.eval_shape(model.init, {"params": jax.random.key(0)}, SOURCE, TARGET)
  draw = np.random.default_rng(2)
  return model, jax.tree.map(lambda s: draw.normal(0, 0.5, s.shape).astype(np.float32), shapes)


@functools.cache
def compiled(kind, method=None):
  """A method, for all tests that call it with the same shapes."""
  model, variables = drawn(kind)
  return jax.jit(
    functools.partial(model.apply, variables, method=method), static_argnums=(1,) * (method == "init_cache")
  )


def whole(kind, source=SOURCE, target=TARGET, numbers=None):
  """Logits and aux of four rows; `numbers` are the segments of source and target."""
  numbers = numbers or ((source != 0).astype(np.int32), np.ones_like(target))
  return compiled(kind)(source, target, *map(SequenceInfo, numbers))


def fill(rows, length):
  """Rows of different lengths to an array, filled up with 0."""
  return np.array([[*row, *[0] * (length - len(row))] for row in rows], np.int32)


def close(found, wanted):
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["additive", "general"])
def test_no_output_depends_on_later_tokens(kind):
  """By gradients of every output to every embedded target."""
  model, variables = drawn(
    kind, tie_embeddings="none"
  )  # a table of the targets' own, so that the sources stay unchanged

  @jax.jit
  @jax.jacobian
  def read(table):
    target = jnp.arange(6)[None]  # every position has a token, and a row of the table, of its own
    params = variables["params"] | {"target_embed": {"embedding": table}}
    return model.apply({"params": params}, SOURCE[:1], target)[0][0, :, 4:].sum(-1)

  influence_TV = np.abs(read(variables["params"]["target_embed"]["embedding"])).max(-1)[:, :6]
  assert (influence_TV[np.triu_indices(6, 1)] == 0).all()
  assert (influence_TV[np.tril_indices(6)] > 1e-7).all()


@pytest.mark.parametrize("kind", ["dot", "copy"])
def test_the_direction_in_which_the_encoder_reads(kind):
  """Forward, a token depends on those before it; bidirectional, also on those after it."""
  other = SOURCE.copy()
  other[:, 3] = (SOURCE[:, 3] - 3) % 25 + 4
  changed = (np.abs(whole(kind, other)[1]["tokens"] - whole(kind)[1]["tokens"]) > 1e-7).any((0, 2))
  assert changed.tolist() == [kind == "copy"] * 3 + [True] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_positions_of_padding_do_not_matter(kind):
  """At the end, at the beginning, between tokens."""
  padded = np.zeros((4, 7), np.int32)
  for row, positions in enumerate(([0, 1, 2, 3], [3, 4, 5, 6], [0, 2, 3, 6], [1, 2, 3, 4])):
    padded[row, positions] = SOURCE[0, :4]
  found = np.asarray(whole(kind, padded, TARGET[[0] * 4])[0])
  close(found, found[[0] * 4])
  assert np.abs(found[0] - whole(kind)[0][0]).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences_are_independent_at_any_amount_of_padding(kind):
  """Three pairs in a row give what each gives alone, with more padding; a sequence may be one token long."""
  lengths = [(3, 2), (1, 3), (2, 1)]
  sources, targets = ([a[i, : pair[side]] for i, pair in enumerate(lengths)] for side, a in enumerate((SOURCE, TARGET)))
  rows = [fill([np.concatenate(side), *side], n) for side, n in ((sources, 7), (targets, 6))]
  alone = [[1] * 9] * 3
  numbers = [fill([[1, 1, 1, 2, 3, 3], *alone], 9)[:, :7], fill([[1, 1, 2, 2, 2, 3], *alone], 9)[:, :6]]
  numbers = [np.where(row > 0, n, 0) for row, n in zip(rows, numbers, strict=True)]
  packed, *alone = np.asarray(whole(kind, *rows, numbers)[0])
  begin = 0
  for found, (_, length) in zip(alone, lengths, strict=True):
    close(packed[begin : begin + length], found[:length])
    begin += length


def test_a_row_may_be_as_short_as_its_sequence():
  model, variables = drawn("additive")
  short = jax.jit(model.apply)(variables, SOURCE[:, :4], TARGET)[0]
  close(short, whole("additive", np.where(np.arange(7) < 4, SOURCE, 0))[0])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("dot", "none, both ways")])
def test_decode_step_is_a_position_of_the_forward_pass(kind):
  memory, cache = compiled(kind, "init_cache")(SOURCE, 8)
  assert all(len(leaf) == 4 for leaf in jax.tree.leaves((memory, cache)))
  sizes = [leaf.shape for leaf in jax.tree.leaves(cache)]
  for i, wanted in enumerate(np.asarray(whole(kind)[0]).swapaxes(0, 1)):
    found, cache = compiled(kind, "decode_step")(memory, cache, TARGET[:, i], jnp.int32(i))
    close(found, wanted)
  assert [leaf.shape for leaf in jax.tree.leaves(cache)] == sizes  # so a step costs the same at every position


@pytest.mark.parametrize("kind", ["none", "none, both ways"])
def test_without_attention_the_decoder_reads_the_last_states_alone(kind):
  """That of each layer and direction: others may be anything, and the decoder gets no encoded tokens."""
  model, variables = drawn(kind)
  encoded, _ = compiled(kind, "encode")(SOURCE)
  assert encoded.memory_BSM is None and encoded.keys_BSA is None
  decode = jax.jit(lambda encoded: model.apply(variables, TARGET, encoded, method="decode")[0])
  wanted = whole(kind)[0]
  for layer in range(model.config.depth):
    for way, last in zip(range(1 + model.config.bidirectional), (6, 0), strict=False):
      for part in (0, 1):  # c and h

        def disturb(positions, where=(layer, way, part)):
          def change(path, a):
            return a.at[:, positions].add(1.0) if tuple(key.idx for key in path) == where else a

          return decode(encoded._replace(states=jax.tree_util.tree_map_with_path(change, encoded.states)))

        close(disturb(np.array([i for i in range(7) if i != last])), wanted)
        assert np.abs(disturb(np.array([last])) - wanted).max() > 1e-3, (layer, way, part)


@pytest.mark.parametrize("kind", ["additive", "dot", "general", "copy"])
def test_attention_is_its_formula(kind):
  """The decoder of one row by hand, but for its cells, which tests/parity holds against PyTorch's."""
  model, variables = drawn(kind)
  c, p = model.config, variables["params"]
  _, aux = whole(kind)
  states = jax.tree.map(lambda a: a[:1], compiled(kind, "init_cache")(SOURCE, 8)[1])
  cells, fed = states["cells"], np.zeros(c.embed_dim)
  memory = np.asarray(aux["tokens"][0])

  def attend(query):
    scores = {
      "additive": lambda x, y: (
        p["decoder"]["attention"]["score"][:, 0]
        @ np.tanh(x @ p["decoder"]["attention"]["query"] + y @ p["keys"]["kernel"])
      ),
      "dot": lambda x, y: x @ y,
      "general": lambda x, y: x @ (y @ p["keys"]["kernel"]),
    }[c.attention]
    fit = np.exp([scores(query, y) for y in memory])
    weights = fit / fit.sum()
    return weights, weights @ memory

  def hidden(cell):
    return np.asarray(jax.tree.leaves(cell)[-1][0])

  run = jax.jit(lambda p, state, x: seq2seq.CELLS[c.cell](c.width).apply({"params": p}, state, x))
  for t in range(6):
    x = p["embed" if c.tie_embeddings == "all" else "target_embed"]["embedding"][TARGET[0, t]] * 6**0.5
    if c.attention_query == "previous_state":
      weights, context = attend(hidden(cells[-1]))
    x = np.concatenate([x, fed] if c.input_feeding else [x, context] if c.attention_query == "previous_state" else [x])[
      None
    ]
    for i in range(c.depth):
      cells[i], x = run(p["decoder"][f"cell_{i:02d}"], cells[i], x.astype(np.float32))
    if c.attention_query == "current_state":
      weights, context = attend(hidden(cells[-1]))
    readout = p["decoder"]["readout"]
    fed = np.tanh(np.concatenate([context, hidden(cells[-1])]) @ readout["kernel"] + readout["bias"])
    close(aux["decoder/alignment"][0, t], weights)
    close(aux["decoder/tokens"][0, t], fed)


@pytest.mark.parametrize(
  "kind", [kind for kind in KINDS if kind != "additive"]
)  # which tests/models/test_models.py tries
def test_every_parameter_learns(kind):
  model, variables = drawn(kind)
  grads = jax.jit(jax.grad(lambda v: jnp.square(model.apply(v, SOURCE, TARGET)[0]).mean()))(variables)
  for path, gradient in partitioning.flatten(grads).items():
    assert 1e-9 < np.abs(gradient).max() < np.inf, path


def test_pointer_probabilities_are_summed_over_positions_of_a_token():
  """A pointer's distribution is its attention, summed over positions by token; elsewhere it is 0."""
  source = np.array([[5, 7, 5, 3, 0, 0, 0]] * 4, np.int32)
  found, aux = whole("pointer", source)
  weights = np.asarray(aux["decoder/alignment"])
  close(weights[..., :4].sum(-1), 1)
  wanted = np.zeros(found.shape)
  for b, t, s in np.ndindex(4, 6, 7):
    wanted[b, t, source[b, s]] += weights[b, t, s]
  close(np.exp(found), wanted)
  assert np.abs(weights[:, 0] - weights[:, 1]).max() > 1e-3  # it has read the token it pointed to
  gradient = jax.grad(lambda w: pointer.copy_log_probs(w, source, 29)[..., 9].sum())(jnp.asarray(weights))
  assert (gradient == 0).all()  # of a token that is not in the source: not nan


@pytest.mark.parametrize("search", ["greedy", "beam", "sample"])
def test_a_pointer_generates_only_tokens_of_the_source(search):
  model, variables = drawn("pointer")
  source = np.where(np.arange(7) < 6, SOURCE, 3)
  special = dict(bos_token_id=2, eos_token_id=3, pad_token_id=0, max_length=9)

  @jax.jit
  def run(variables):
    parts = decoding.decode_step_of(model, variables, jnp.asarray(source), 9)
    if search == "beam":
      return decoding.beam_search(*parts, beam_size=3, **special)
    return (
      decoding.greedy(*parts, **special)
      if search == "greedy"
      else decoding.sample(*parts, jax.random.key(0), **special)
    )

  for row, tokens in zip(source, np.asarray(run(variables).sequences_BUT[:, 0]), strict=True):
    length = [*tokens, 3].index(3)
    assert set(tokens[:length]) <= set(row) and (tokens[length + 1 :] == 0).all() and length > 0


def test_a_word_outside_the_vocabulary_can_be_copied_or_pointed_to():
  source, unknown = SOURCE.copy(), SOURCE.copy()
  source[0, 2], unknown[0, 2] = 29, 1
  found, aux = whole("copy", source)
  assert found.shape == (4, 6, 31) and found[0, 2, 29] > -20 > -50 > found[1, 2, 29]
  np.testing.assert_array_equal(aux["tokens"], whole("copy", unknown)[1]["tokens"])
  _, variables = drawn("pointer")
  found, aux = jax.jit(create("pointer", copy_slots=2).apply)(variables, source, TARGET)
  close(np.exp(found[0, :, 29]), aux["decoder/alignment"][0, :, 2])


@pytest.mark.parametrize("kind", ["none", "general"])
def test_scheduled_sampling_is_sequential(kind):
  """By steps: a replacement is predicted from the tokens before it, replaced ones among them."""
  own = np.random.default_rng(5).uniform(size=(4, 6)) < 0.6
  own[:, 0] = False
  mix = compiled(kind, "scheduled_sampling_inputs")
  mixed = np.asarray(mix(SOURCE, TARGET, own))
  memory, cache = compiled(kind, "init_cache")(SOURCE, 8)
  predicted, wanted = TARGET[:, 0], []
  for i in range(6):
    wanted.append(np.where(own[:, i], predicted, TARGET[:, i]))
    found, cache = compiled(kind, "decode_step")(memory, cache, wanted[-1], jnp.int32(i))
    predicted = np.asarray(found).argmax(-1)
  np.testing.assert_array_equal(mixed, np.stack(wanted, 1))
  assert (mixed != TARGET).sum() > 5
  # In one row, a sequence begins with nothing of the one before it.
  together = [SequenceInfo(np.array([[1] * n + [2] * n])) for n in (7, 6)]
  rows = [np.concatenate([a[0], a[1]])[None] for a in (SOURCE, TARGET, own)]
  np.testing.assert_array_equal(mix(*rows, *together)[0], np.concatenate([mixed[0], mixed[1]]))


def test_remat_changes_nothing():
  model, variables = drawn("pointer")
  other = create("pointer", remat="nothing_saveable")

  def gradient(model):
    return jax.grad(lambda v: jnp.square(model.apply(v, SOURCE, TARGET)[0]).mean())

  jax.tree.map(close, jax.jit(gradient(other))(variables), jax.jit(gradient(model))(variables))
  programs = [str(jax.make_jaxpr(gradient(m))(variables)) for m in (model, other)]
  assert ["remat" in program or "checkpoint" in program for program in programs] == [False, True]


def test_dropout_is_between_layers_and_needs_a_key():
  _, variables = drawn("none")
  apply = jax.jit(create("none", dropout_rate=0.5).apply)
  close(apply(variables, SOURCE, TARGET)[0], whole("none")[0])
  one, again, two = (apply(variables, SOURCE, TARGET, rngs={"dropout": jax.random.key(k)})[1] for k in (1, 1, 2))
  np.testing.assert_array_equal(one["decoder/tokens"], again["decoder/tokens"])
  assert (one["decoder/tokens"] != two["decoder/tokens"]).any()
  for name in ("embedded", "block_00", "decoder/tokens"):
    zeros = np.asarray(one[name]) == 0
    assert 0.3 < zeros.mean() < 0.7 and (zeros[:, 0] != zeros[:, 1]).any(), name  # other ones at every position


def test_states_are_float32():
  _, variables = drawn("general")
  encode = functools.partial(create("general", dtype="bfloat16").apply, method="encode")
  encoded, aux = jax.eval_shape(encode, variables, SOURCE)
  assert {a.dtype for a in jax.tree.leaves(encoded.states)} == {jnp.dtype("float32")}
  assert aux["tokens"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
  ("overrides", "named"),
  [
    (dict(cell="gur"), ("cell", "'gur'", "'gru'")),
    (dict(attention="bahdanau"), ("attention", "'bahdanau'", "none, additive, dot, general")),
    (dict(attention="none", head="copy"), ("head='copy'", "attention", "'none'")),
    (dict(attention="none", input_feeding=True), ("input_feeding", "attention", "'none'")),
    (dict(attention_dim=0), ("attention='additive'", "attention_dim")),
    (dict(attention="dot"), ("attention='dot'", 24, "'general'")),
    (dict(head="pointer"), ("head='pointer'", "attention_query='current_state'")),
    (dict(head="pointer", attention_query="current_state", head_bias=True), ("head_bias", "head='pointer'")),
    (dict(copy_slots=2), ("copy_slots", 2, "head", "'vocab'")),
    (dict(attention="none", tie_embeddings="all"), ("tie_embeddings='all'", 24, 20)),
    (dict(bos_token_id=29), ("bos_token_id", 29)),
    (dict(width=0, dropout_rate=1.0), ("width is 0", 1, "dropout_rate is 1.0", 0)),
  ],
)
def test_invalid_configs(overrides, named):
  with raises(ValueError, *named):
    zoo.create("seq2seq/test", **overrides)
