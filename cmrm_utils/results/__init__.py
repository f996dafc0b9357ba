"""Tables and figures, out of tables of trials."""
