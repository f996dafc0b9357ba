"""Runs: profiles, plans, shards, notebooks executed, reports."""
