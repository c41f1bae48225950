"""What a daemon tells whoever watches it: metrics, and a page to look at. Read-only, local, off unless asked for."""
