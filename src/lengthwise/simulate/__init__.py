"""Step-level simulation of continuous batching, under the very policies that vLLM runs."""

from lengthwise.simulate.engine_settings import EngineSettings
from lengthwise.simulate.simulation import Simulation, simulate
from lengthwise.simulate.step_cost import StepCost

__all__ = ["EngineSettings", "Simulation", "StepCost", "simulate"]
