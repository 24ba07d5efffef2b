"""Step-level simulation of continuous batching, under the very policies that vLLM runs."""
