"""Backends: how an engine instance is run. One file per outside thing."""
