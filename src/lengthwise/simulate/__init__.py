"""Step-level simulation of continuous batching, under the very policies that vLLM runs."""

from lengthwise.simulate.engine import EngineSettings, StepCost
from lengthwise.simulate.simulation import Simulation, simulate

__all__ = ["EngineSettings", "Simulation", "StepCost", "simulate"]
