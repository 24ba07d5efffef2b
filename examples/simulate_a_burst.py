"""What would shortest-first do to two hundred requests that come all at once?"""

import math

from lengthwise import EngineSettings, StepCost, make_discipline, synthetic_trace
from lengthwise.simulate import simulate
from lengthwise.simulate.predictions import trace_predictions

trace = synthetic_trace(200, math.inf, mean_prompt=100, mean_output=150, sigma=0.8, seed=1)
cost = StepCost(step_s=7e-3, prefill_s=32e-6, decode_s=32e-6)
engine = EngineSettings(slots=16)
predictions = trace_predictions(trace, "noisy-oracle:0.5")

for policy in ("fcfs", "ltr", "srpt"):
    served = simulate(trace, make_discipline(policy), cost, engine, predictions=predictions)
    print(
        f"{policy:5} mean latency {served.e2el_s.mean():.1f} s, longest {served.e2el_s.max():.1f} s"
    )
