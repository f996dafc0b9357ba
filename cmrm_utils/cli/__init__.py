"""The ``cmrm`` command."""
