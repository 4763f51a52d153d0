"""What the engine is timed with. Each bench_*.py is a program: `python -m benchmarks.bench_…`."""
