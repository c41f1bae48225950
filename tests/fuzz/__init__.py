"""Fuzzing of every parser: whatever bytes come in, only typed errors come out."""
