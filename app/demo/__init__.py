"""The demonstration that `outkeep demo` gives: the main job end to end, against the simulator.

The way in is `story`; `stage` starts `outkeep up` as a process of its own. Nothing here is used by anything
but the command, and nothing but Replicate may be simulated.
"""
