"""How the node's things are done: backends, engines, models, validation, hardware. Decides nothing."""
