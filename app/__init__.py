"""Outkeep: receive, keep and hand on what Replicate predictions produce."""
