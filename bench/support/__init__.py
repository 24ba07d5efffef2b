"""vLLM's real scheduler without an engine or a model, for benches and tests."""
