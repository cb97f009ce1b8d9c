"""Repairs that run by themselves: the sweep, retention, the rebuild after a loss, and reconciliation.

The ways in are `sweep` and `reconciler`, each a thread of which one in all processes works at a time.
Every repair looks again in the same step that changes something, and nothing is removed that a living
process may still need.
"""
