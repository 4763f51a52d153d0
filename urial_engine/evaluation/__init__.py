"""Benchmarks that a judge reads: their own files go in, the rows of their judges come out, and
what a judge says of these, parsed strictly."""
