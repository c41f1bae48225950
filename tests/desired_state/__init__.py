"""Tests of the package `desired_state`."""
