"""A token shift whose answer is known: a planted style, and whether the analysis finds it."""
