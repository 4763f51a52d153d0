"""The engine in lm-evaluation-harness: importing this registers the model `urial`.

`python -m urial_engine.compat.lm_eval ARGS` is the harness's command line with that model in it.
"""

try:
    from .model import UrialLM
except ModuleNotFoundError as error:
    if str(error.name).partition(".")[0] != "lm_eval":
        raise
    raise ImportError(
        "the model `urial` needs lm-evaluation-harness: pip install 'urial-engine[lm-eval]'"
    ) from error

__all__ = ["UrialLM"]
