"""Recurrent layers are torch.nn.GRU and torch.nn.LSTM, with the same weights. Needs the extra [parity]."""

import jax
import numpy as np
import pytest
import torch

import zoo

pytestmark = pytest.mark.parity

LENGTHS = np.array([7, 4, 1])
SOURCE = np.where(np.arange(7) < LENGTHS[:, None], np.random.default_rng(0).integers(4, 29, (3, 7)), 0)
TARGET = np.random.default_rng(1).integers(4, 29, (3, 6))
GATES = {"gru": "rzn", "lstm": "ifgo"}


def their_cell(theirs, layer, gates, suffix=""):
  """Parameters of one of their layers as ours."""
  arrays = [getattr(theirs, f"{name}_l{layer}{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
  of_input, of_state, input_bias, state_bias = (np.split(a.detach().numpy(), len(gates)) for a in arrays)
  cell = {}
  for n, gate in enumerate(gates):
    cell[f"i{gate}"], cell[f"h{gate}"] = {"kernel": of_input[n].T}, {"kernel": of_state[n].T}
    # They have two biases for each gate, of which only the sum counts; but a GRU's reset gate is between the two of
    # its new value.
    if gates == "rzn":
      cell[f"i{gate}"]["bias"] = input_bias[n] + (0 if gate == "n" else state_bias[n])
    else:
      cell[f"h{gate}"]["bias"] = input_bias[n] + state_bias[n]
    if gate == "n":
      cell["hn"]["bias"] = state_bias[n]
  return cell


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", GATES)
def test_states_and_outputs(cell, bidirectional, depth):
  """Rows of several lengths, as PyTorch has packed sequences; the decoder goes on where the encoder has stopped."""
  sizes = dict(width=10, embed_dim=6, depth=depth, cell=cell, bidirectional=bidirectional, attention="none")
  model, gates = zoo.create("seq2seq/test", **sizes), GATES[cell]
  variables = jax.jit(model.init)({"params": jax.random.key(0)}, SOURCE, TARGET)
  params = variables["params"]
  torch.manual_seed(0)
  kind = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell]
  encoder = kind(6, 10, depth, batch_first=True, bidirectional=bidirectional)
  decoder = kind(6, 10, depth, batch_first=True)
  for i in range(depth):
    params["encoder"][f"forward_{i:02d}"] = their_cell(encoder, i, gates)
    if bidirectional:
      params["encoder"][f"backward_{i:02d}"] = their_cell(encoder, i, gates, "_reverse")
    params["decoder"][f"cell_{i:02d}"] = their_cell(decoder, i, gates)

  def run(params):
    encoded, _ = model.apply({"params": params}, SOURCE, method="encode")
    _, start = model.apply({"params": params}, SOURCE, 6, method="init_cache")
    return encoded.states, start["cells"], model.apply({"params": params}, SOURCE, TARGET)[1]

  states, start, aux = jax.jit(run)(params)
  source, target = (
    torch.tensor(np.asarray(params[f"{side}_embed"]["embedding"])[tokens] * 6**0.5)
    for side, tokens in (("source", SOURCE), ("target", TARGET))
  )
  packed = torch.nn.utils.rnn.pack_padded_sequence(source, LENGTHS, batch_first=True)
  out, last = encoder(packed)
  out, _ = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
  real = SOURCE > 0
  np.testing.assert_allclose(np.asarray(aux["tokens"])[real], out.detach().numpy()[real], rtol=1e-5, atol=1e-6)
  parts = last[::-1] if cell == "lstm" else (last,)  # theirs is (h, c), ours (c, h)
  for i in range(depth):
    for way in range(1 + bidirectional):
      # The last state: forward, at the row's end, which holds it through the padding; backward, at its beginning.
      found = [a[:, 0 if way else -1] for a in jax.tree.leaves(states[i][way])]
      for ours, theirs in zip(found, parts, strict=True):
        theirs = theirs[i * (1 + bidirectional) + way].detach()
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
  ours = [torch.tensor(np.stack(part)) for part in zip(*map(jax.tree.leaves, start), strict=True)]
  if not bidirectional:
    for part, theirs in zip(ours, parts, strict=True):
      np.testing.assert_allclose(part, theirs.detach(), rtol=1e-5, atol=1e-6)
  out, _ = decoder(target, tuple(ours[::-1]) if cell == "lstm" else ours[0])
  np.testing.assert_allclose(aux["decoder/tokens"], out.detach(), rtol=1e-5, atol=1e-6)
