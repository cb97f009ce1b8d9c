"""The notify job: one attempt to give one event to one handler, and what follows from how it ended.

The way in is `notify`, which posts webhooks and enqueues jobs of the user's; `follow` makes predictions. Each
attempt makes its event afresh from the manifest. Outputs are not fetched here, and only a 2xx counts as
success.
"""
