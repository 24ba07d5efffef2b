"""Step-level simulation of continuous batching, under the very policies that vLLM runs.

simulation   requests simulated on one or several engines under a discipline
cluster      several engines behind a router, from event to event
replica      one engine, and all that it is made of
step         one step of it
plan         what comes before the step: facts gathered, the decision carried out
slots        how requests join an engine, take its slots, use them and leave them
kv_blocks    its KV blocks
engine       its limits, and how long a step takes
presets      GPUs with models on them
predictions  predictions for traces, which have no prompts
"""

from lengthwise.simulate.engine import EngineSettings, StepCost
from lengthwise.simulate.simulation import Simulation, simulate

__all__ = ["EngineSettings", "Simulation", "StepCost", "simulate"]
