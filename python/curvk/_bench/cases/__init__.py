"""One module per kernel family; each has a list CASES."""
