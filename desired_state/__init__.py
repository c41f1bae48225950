"""Where desired state comes from and why it may be believed: git, signatures, trust, authoring."""
