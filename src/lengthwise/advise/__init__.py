"""Tools on the simulator: fit its costs, check it against measurements, ask it what to choose."""
