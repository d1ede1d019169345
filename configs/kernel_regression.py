r"""Kernel regression of the food expenditure of 235 households on their income, with a learned kernel width.

    zoo train kernel_regression

It takes 10 seconds on 2 CPU cores. Mean squared error of the 35 test households, and leave-one-out error of the 200
training households, in (francs a year)^2:

    model                     leaving one out    test
    average                            78,250  68,800
    gaussian, width 20                 20,810   7,095
    gaussian, width 50                 18,160   5,218
    gaussian, width 150                15,930   6,306
    gaussian, width 500                29,760  22,110
    learned, from width 500            15,930   6,249

The learned width, 146, minimises the leave-one-out error. The 16 households with more than 1,700 francs, far from each
other, contribute 57 % of that error; the best width for the others is 88. With a given width there is nothing to train:

    zoo train kernel_regression model.name=kernel_regression/gaussian model.bandwidth=50.0 steps=1 \
      --workdir runs/width_50
    zoo train kernel_regression model.name=kernel_regression/average steps=1 --workdir runs/average

For points of your own: data.dataset=FILE.csv, with two columns, x and y, and a batch_size of at most the number of
training points. With all of them in a batch, as here, the gradient is that of the leave-one-out error itself.
"""

from train.config import defaults


def get_config():
  config = defaults()
  config.model = dict(name="kernel_regression/learned", bandwidth=500.0)
  config.data = dict(name="regression", dataset="engel", test_share=0.15)
  config.objective = dict(name="regression")
  config.batch_size = 200
  config.steps = 300
  config.optimizer = dict(name="adamw", learning_rate=0.1, b2=0.95)
  config.evals = dict(leave_one_out=dict(name="loss", split="train"), test=dict(name="loss"))
  config.checkpoint.every_steps = 100
  config.plots = ("loss_curve", "regression_curve", "attention_heat_map", "kernel_widths")
  return config
