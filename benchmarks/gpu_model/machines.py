"""What the model of the GPU's speed takes for granted: nothing goes in; machines, models and
assumed shares come out.

Bytes and operations are counted (`kernels.py`); what stands here is not. Figures of a
data sheet are the machine's limits, and a share of one is what a good kernel is assumed to reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from urial_engine.config import ModelConfig

GB, TB, TERA = 1e9, 1e12, 1e12
MEMORY = 0.9  # of the data sheet's bandwidth, that a copy reaches
LIBRARY = 0.7  # of the dense tensor rate, that cuBLAS reaches where it is bound by arithmetic
TRITON = 0.5  # of it, that a kernel with tl.dot reaches
# Of cuBLAS's rate, that a product written by hand with mma.sync and cp.async reaches where that is
# the instruction that cuBLAS itself uses.
BY_HAND = 0.9
# fp32 instructions, counted in the source: for a logit in rank.cu, and for a score in attention,
# where an exponential takes eight times as long as an addition.
LOGIT, SCORE = 20, 16
LAUNCH = 2e-6  # seconds a kernel of a graph: the gap before it, its first loads, its last program
HOST = 5e-6  # seconds a launch takes the host, where no graph has recorded it
COPY = 10e-6  # seconds a copy between host and device, however small
COPIES = 3  # a step: the layers' arrays and the sampler's over, the results back


@dataclass(frozen=True)
class Machine:
    """Bytes, and bytes or operations a second."""

    name: str
    architecture: int
    processors: int
    capacity: float
    bandwidth: float
    tensor: float  # dense bf16
    vector: float  # fp32; a multiply-add is two operations
    l2: float
    l2_bandwidth: float  # assumed: no data sheet has it
    # Of the tensor rate, that mma.sync can reach at all. Hopper's own instruction is wgmma; on
    # it, mma reaches 62.9 % of the peak (arXiv 2402.13499).
    mma: float
    source: str


MACHINES = (
    Machine(
        "A100 80GB SXM",
        *(80, 108, 80 * GB, 2.039 * TB, 312 * TERA, 19.5 * TERA, 40e6, 4.8 * TB, 1.0),
        "NVIDIA A100 data sheet (SXM4 80GB) and architecture whitepaper",
    ),
    Machine(
        "H100 SXM",
        *(90, 132, 80 * GB, 3.35 * TB, 989 * TERA, 67 * TERA, 50e6, 5.5 * TB, 0.629),
        "NVIDIA H100 data sheet (SXM5) and architecture whitepaper",
    ),
    Machine(
        "L4",
        *(89, 58, 24 * GB, 0.3 * TB, 121 * TERA, 30.3 * TERA, 48e6, 1.5 * TB, 1.0),
        "NVIDIA L4 data sheet and Ada architecture whitepaper",
    ),
)


def published(hidden: int, feed_forward: int, kv_heads: int, **rest: Any) -> ModelConfig:
    """From the values of a config.json on the Hugging Face hub."""
    return ModelConfig.from_dict(
        {
            "model_type": "llama",
            "hidden_size": hidden,
            "intermediate_size": feed_forward,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": kv_heads,
            "vocab_size": 32000,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            **rest,
        }
    )


# meta-llama/Llama-2-7b-hf, mistralai/Mistral-7B-v0.1 and meta-llama/Meta-Llama-3-8B.
MODELS = {
    "Llama-2-7B": published(4096, 11008, 32, max_position_embeddings=4096),
    "Mistral-7B-v0.1": published(
        *(4096, 14336, 8),
        model_type="mistral",
        max_position_embeddings=32768,
        sliding_window=4096,
    ),
    "Llama-3-8B": published(
        *(4096, 14336, 8),
        vocab_size=128256,
        max_position_embeddings=8192,
        rope_theta=500000.0,
    ),
}
