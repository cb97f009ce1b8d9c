"""A local Replicate: predictions, trainings, files and signed webhooks, over real HTTP."""

from app.simulator.attempts import Attempt
from app.simulator.server import Simulator, run

__all__ = ["Attempt", "Simulator", "run"]
