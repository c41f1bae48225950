"""Validation inference: only a running model that answers as recorded is Active."""
