"""The decision and the loop: observe, plan, apply, journal, watch, and the command line."""
