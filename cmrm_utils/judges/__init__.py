"""Judges of responses: refusals, right answers, perplexity, pairwise reviews."""
