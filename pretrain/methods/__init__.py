"""SplitMask and its baselines, as modules that return named losses."""
