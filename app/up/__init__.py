"""`outkeep up`: the whole of Outkeep in one terminal, restarting what dies.

The way in is `everything`; `supervisor` runs the children, `lifeline` ends them with their parent. Only
processes are handled here: no delivery, record or job is looked at, and `main` and the workers are started
as programs, never imported.
"""
