"""A model's check at load: the engine against transformers alone."""
