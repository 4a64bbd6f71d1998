"""Run an installation in containers: one Dockerfile, one Compose file, and what prepares them.

1. `Dockerfile`: three images of one build: `gateway`, `server` (engines and worker) and `vllm`.
2. `compose.yaml` and `.env.example`: the services, and every variable that they take.
3. `setup.py`: the first service: it refuses weak passwords, migrates the database, and keeps a key for Prometheus.
4. `prometheus.yaml` and `grafana/`: the configuration that brings `deploy/monitoring/` in.
5. `postgres.lock`: the driver for PostgreSQL, by hash.
"""
