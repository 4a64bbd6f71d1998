"""Keep a served model learning without forgetting: jobs, replay, gate and promotion."""
