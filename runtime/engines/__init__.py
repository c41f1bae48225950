"""Engines: what is run. One file per engine."""
