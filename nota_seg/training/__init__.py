"""The one training loop of both phases, and what it stands on: sampling, optimisation, exact state."""
