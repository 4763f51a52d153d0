"""A token shift goes in; what people read comes out: summaries, comparisons, plots and the page."""
