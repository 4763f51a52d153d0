"""Other programs' ways of asking: each package here is one of them, over the engine's calls."""
