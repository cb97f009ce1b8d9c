"""A local Replicate: predictions, trainings, files and signed webhooks, over real HTTP.

The way in is `Simulator`; the demonstration, `outkeep simulate` and the tests use it. It must not import
what it is used to test: of our own code only `core`.
"""

from app.simulator.server import Simulator, run
from app.simulator.webhooks import Attempt

__all__ = ["Attempt", "Simulator", "run"]
