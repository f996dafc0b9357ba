"""Trials in, hidden states or responses out."""
