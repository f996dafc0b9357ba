"""Side-by-side timings of the engine against the usual ways and against peers.

``python -m benchmarks`` runs them all and writes ``benchmarks/RESULTS.md``. Timing helpers are in
:mod:`benchmarks.timing`, the table in :mod:`benchmarks.report`, models and prompts in
:mod:`benchmarks.setting`, other people's ways in :mod:`benchmarks.peers`, and each topic has a file
of its own. The engine is used by its public names alone.
"""
