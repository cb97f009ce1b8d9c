"""The rules: plain functions over plain values, which decide and never act.

Start at `prediction`, `outputs`, `manifest` and `policy`; `names` makes every string that outlives a
process. Nothing here reads a clock, the environment, a file or the network, writes a log line or draws a
random number, and nothing here imports another package of ours.
"""
