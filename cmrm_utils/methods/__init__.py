"""Methods, a file each: vectors, an edit or a prompt, settings."""
