"""What is minimized: each objective maps a model and a batch to a sum of losses over a number of targets."""
