"""vLLM's offline API on this engine: the names that scripts import from `vllm`.

`from urial_engine.compat.vllm import LLM, SamplingParams`, or an unmodified script under
`python -m urial_engine.compat.vllm SCRIPT ARGS`. docs/tools/vllm.md says what is honoured.
"""

from .inputs import PromptType, TextPrompt, TokensPrompt
from .llm import LLM
from .outputs import CompletionOutput, RequestOutput
from .sampling_params import SamplingParams

__all__ = [
    "LLM",
    "CompletionOutput",
    "PromptType",
    "RequestOutput",
    "SamplingParams",
    "TextPrompt",
    "TokensPrompt",
]
# The version whose names and defaults these are, for scripts that compare it; and whose they are.
__version__ = "0.32.0+urial.engine"
