"""What a process says about itself: log lines without secrets, and counters on their way to Redis.

The ways in are `logs.configure` and `tally.Tally`; beside them stands what each process sets for itself
when it starts: memory, open files, what Ctrl-C ends. Every package may use this one, so it uses no other
package than `core`: it must not look at storage, jobs or records.
"""
