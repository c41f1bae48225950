"""One checker of I1 to I11 over what can be seen of a node from outside: see `checks.check` and `witness.Witness`."""
