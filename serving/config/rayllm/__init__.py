"""RayLLM's older spellings: read as today's names, and rewritten by `modelfleet check --fix`.

A newcomer may skip this folder: the schema beside it knows today's names only.
"""
