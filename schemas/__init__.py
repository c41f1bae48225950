"""The vocabulary: every document, message and error, as frozen types. Nothing in here does I/O."""
