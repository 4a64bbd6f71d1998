"""Ship a bundle: edge devices, compose, Kubernetes and clouds."""
