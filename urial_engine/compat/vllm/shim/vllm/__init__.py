"""What processes of a launched script import as `vllm`: it puts this engine into its own place."""

from urial_engine.compat.vllm.__main__ import stand_in

stand_in()
