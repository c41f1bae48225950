"""The command line. Each command imports what it uses when it runs."""
