"""A local Replicate: predictions, trainings, files and signed webhooks, over real HTTP.

The way in is `Simulator`; the demonstration, `outkeep simulate` and the tests use it. It must not import
what it is used to test: of our own code only `core`.
"""

from app.simulator.attempts import Attempt
from app.simulator.server import Simulator, run

__all__ = ["Attempt", "Simulator", "run"]
