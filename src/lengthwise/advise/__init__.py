"""Tools on the simulator: fit its costs, check it against measurements, ask it what to choose.

calibrate  step costs from what an engine recorded
fidelity   how near a simulation comes to what was measured
sweep      one simulation, and many
tune       the policy and bounds for a workload
doctor     whether traffic queues enough for its order to matter
foregone   what a policy would have made of requests served in order of arrival
"""
