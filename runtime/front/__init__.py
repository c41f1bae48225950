"""The front: the small process through which the runtime is reached, and the agent's hand on it."""
