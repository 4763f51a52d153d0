"""What judges the code without running the engine: line budgets, sanitizers, the compile report."""
