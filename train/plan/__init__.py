"""What a model or a run costs, before it is run."""
