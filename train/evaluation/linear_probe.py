"""A linear probe: logistic regression on frozen features."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from train.evaluation.base import Evaluation, map_examples
from train.experiment import Experiment
from train.images import normalise
from zoo import registry


def linear_probe(
  experiment: Experiment,
  *,
  every_steps: int = 0,
  train_split: str = "",
  split: str = "",
  batch_size: int = 0,
  l2: float = 1e-3,
  iterations: int = 200,
  compare_untrained: bool = False,
) -> Evaluation:
  """Multinomial logistic regression on frozen features (as in Alain & Bengio 2017; He et al. 2022, 4).

  Features are computed once, without augmentation, and standardised with the training split's statistics; the
  convex problem is solved by L-BFGS from zero, so the result does not depend on a learning rate.

  Args:
    experiment: `train.experiment.Experiment`.
    every_steps: steps between two probes; 0 for only the last.
    train_split, split: of the data, to fit and to score; the data's own if empty.
    batch_size: to compute features; the training's if 0.
    l2: weight of the squared norm of the weights.
    iterations: of L-BFGS, at most.
    compare_untrained: also probe the encoder as initialised: "untrained_accuracy", and "gain", the difference.

  Returns:
    an evaluation of "accuracy" on `split` and "train_accuracy" on the training split.
  """
  family = registry.family_of(experiment.model)
  data, objective = experiment.data, experiment.objective

  def features(variables, batch):
    images = normalise(batch["image"], objective.mean, objective.std)
    return family.features(experiment.model, variables, images), batch["label"]

  features_of = map_examples(experiment, features)

  def compute(variables, name: str) -> tuple[np.ndarray, np.ndarray]:
    batches = features_of(variables, name, batch_size)
    found, labels = map(np.concatenate, zip(*batches, strict=True))
    return found, labels

  def probe(variables) -> dict[str, float]:
    train, test = compute(variables, train_split or data.train_split), compute(variables, split)
    accuracy, train_accuracy = logistic_regression(*train, *test, data.num_classes, l2, iterations)
    return {"accuracy": accuracy, "train_accuracy": train_accuracy}

  def evaluate(variables) -> dict[str, float]:
    result = probe(variables)
    if compare_untrained:
      # Initialised from the seed again, so that a resumed run needs nothing from its start.
      result["untrained_accuracy"] = probe(experiment.parallel.init(experiment.init_variables))["accuracy"]
      result["gain"] = result["accuracy"] - result["untrained_accuracy"]
    return result

  return Evaluation(every_steps, evaluate)


def logistic_regression(
  train_features: np.ndarray,
  train_labels: np.ndarray,
  test_features: np.ndarray,
  test_labels: np.ndarray,
  num_classes: int,
  l2: float,
  iterations: int,
) -> tuple[float, float]:
  """Fits a softmax classifier to standardised features [examples, width].

  Returns:
    accuracy on the test and on the training examples, 0 to 1.
  """
  mean, std = train_features.mean(0), train_features.std(0) + 1e-6
  train_features, test_features = (train_features - mean) / std, (test_features - mean) / std
  kernel, bias = fit_softmax(train_features, train_labels, num_classes, l2, iterations)

  def accuracy(features, labels) -> float:
    return float(((features @ kernel + bias).argmax(1) == labels).mean())

  return accuracy(test_features, test_labels), accuracy(train_features, train_labels)


@jax.jit
@jax.value_and_grad
def softmax_loss(flat: jax.Array, features: jax.Array, labels: jax.Array, l2: float) -> jax.Array:
  """The mean cross-entropy plus `l2` times the squared norm of the kernel, and its gradient.

  `flat` [(width + 1) * classes] holds the kernel [width, classes] and, as its last row, the bias.
  """
  weights = flat.reshape(features.shape[1] + 1, -1)
  with jax.default_matmul_precision("highest"):  # bf16, a TPU's default, is too coarse for the line search
    logits = features @ weights[:-1] + weights[-1]
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
  return loss + l2 * jnp.square(weights[:-1]).sum()


def fit_softmax(
  features: np.ndarray, labels: np.ndarray, num_classes: int, l2: float, iterations: int
) -> tuple[np.ndarray, np.ndarray]:
  """Minimises `softmax_loss` by at most `iterations` iterations of L-BFGS.

  SciPy's takes little more than one evaluation an iteration; one within JAX takes longer to compile than this to run.

  Returns:
    the kernel [width, classes] and the bias [classes].
  """
  from scipy import optimize  # its import takes half a second

  features, labels = jax.device_put((features, labels))

  def objective(flat):
    loss, gradient = jax.device_get(softmax_loss(flat.astype(np.float32), features, labels, l2))
    return float(loss), gradient.astype(np.float64)

  start = np.zeros((features.shape[1] + 1) * num_classes)
  found = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=dict(maxiter=iterations))
  weights = found.x.astype(np.float32).reshape(-1, num_classes)
  return weights[:-1], weights[-1]
