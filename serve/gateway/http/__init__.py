"""What every request passes: ids, bodies, errors, logs and metrics."""
