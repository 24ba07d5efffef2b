"""The adapter that runs Lengthwise policies inside vLLM."""
