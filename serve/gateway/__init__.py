"""The public door: OpenAI routes, keys, limits and metrics in front of the engines. Never imports a model library."""
