"""Length-aware scheduling for LLM serving: short answers first, on an unmodified vLLM."""
