"""The dimension letters, and `expect`: arrays checked against the letters in their names.

    B batch               D model width             Y image or grid rows
    T query length        F MLP width               X image or grid columns
    S key length          V vocabulary or classes   C channels of an image
    N heads               L layers                  P patches of an image
    K key/value heads     W windows of a map        O relative offsets
    H head width          G query heads of a key head
    Q, E, A widths of queries, of keys and embeddings, and of the hidden layer of an additive score
    M, R    widths of an encoder's memory and of a readout
    Z, I    sequences that share a row, and tokens of a row that are predicted
    U, J    hypotheses (the beam, or the sequences returned) and candidates of a source in decoding
    1, 2    axes of that size

An argument called `q_BTNH` is an array of rank 4 whose axes are B, T, N and H.
"""


class ShapeError(ValueError):
  """An array does not have the shape that its name promises."""


def expect(**arrays) -> dict[str, int]:
  """Checks every array against the letters after the last underscore of its name.

  The check runs while JAX traces, so a compiled function does not pay for it.

  Args:
    **arrays: `name_LETTERS=array`; None is passed over, so optional arguments need no `if`.

  Returns:
    The size of every letter.

  Raises:
    ShapeError: ranks or sizes disagree. It names each array, its letters and all sizes.
  """
  sizes, faults = {}, []
  for name, array in arrays.items():
    letters = name.rpartition("_")[2]
    if array is None:
      continue
    if len(array.shape) != len(letters):
      # One example where a batch is wanted is the usual mistake.
      one = letters[0] == "B" and len(array.shape) == len(letters) - 1
      hint = ": a batch of one is array[None]" if one else ""
      faults.append(f"{name} has rank {len(array.shape)}, its letters say {len(letters)}{hint}")
      continue
    for letter, size in zip(letters, array.shape, strict=True):
      if sizes.setdefault(letter, size) != size:
        faults.append(f"{letter} is {size} in {name} but {sizes[letter]} before it")
  if faults:
    given = ", ".join(f"{n} {tuple(a.shape)}" for n, a in arrays.items() if a is not None)
    raise ShapeError(f"{'; '.join(faults)}. Got {given}.")
  return sizes
