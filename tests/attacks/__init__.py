"""The attack table: hostile repositories, mirrors and servers against a real node at the command line."""
