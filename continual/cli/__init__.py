"""The commands of continual training: jobs, the worker and the replay buffer."""
