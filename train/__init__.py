"""Training: data, objectives, the step, the loop, checkpoints and the `zoo` command."""
