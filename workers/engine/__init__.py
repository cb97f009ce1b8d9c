"""How jobs run: RQ workers for many coroutine jobs on one event loop, and one that forks for users' code.

The ways in are `async_worker` and `handle`. RQ's books are kept as RQ keeps them, so that its own tools
work. Nothing here knows what a job does, and no code may be imported because Redis names it.
"""
