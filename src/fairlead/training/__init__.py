"""Training of the reference networks: data, loss, loop."""
