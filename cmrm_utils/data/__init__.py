"""Data sets by name, and anyone's own file."""
