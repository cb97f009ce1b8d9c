"""Work on what is kept already: replay, rebuild, remove, verify, and find what is inconsistent.

Start at `replay`, `rebuild` and `removal`; commands, checks and the workers' repairs all call them. Nothing
here runs by itself or calls Replicate, and everything here may be interrupted at any moment and run again.
"""
