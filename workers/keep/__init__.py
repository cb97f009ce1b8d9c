"""The persist job: load, fetch all outputs, store all, write the manifest last, dispatch handlers' jobs.

The way in is `persist`; `collect` runs the files of one prediction in parallel, `fetch` downloads one of them
into a `download`, `output_file` names and stores it. Nothing may be fetched from outside of the allow-list or
written straight to its final path, and no handler is notified from here.
"""
