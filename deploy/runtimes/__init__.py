"""Models in the formats of other runtimes: LiteRT, ExecuTorch, OpenVINO, MLX, JAX."""
