"""Training and measuring: what makes a model better, and what says how good it is."""
