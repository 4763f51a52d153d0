"""vLLM's build for CPUs with prefix caching; ranks come from its prompt_logprobs, which read the
prefix again for every query: they bypass the cache.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers.common import Steps, Texts, arguments, report, timed

BLOCK = 128  # tokens of a cache block on a CPU
NO_AMX = "URIAL_RACE_NO_AMX"


def environment(texts: Texts) -> None:
    """Settings that vLLM reads when it is imported; Intel's OpenMP, which its manual asks for, must
    be there before Python starts, so the process starts once more."""
    cores = sorted(os.sched_getaffinity(0))[: texts.threads]
    os.environ.update(
        VLLM_CPU_OMP_THREADS_BIND=",".join(map(str, cores)),
        VLLM_CPU_NUM_OF_RESERVED_CPU="0",  # else a core is kept idle
        VLLM_LOGGING_LEVEL="ERROR",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",  # two processes would share the cores
        HF_HUB_OFFLINE="1",
    )
    openmp = Path(sys.prefix, "lib", "libiomp5.so")
    if str(openmp) not in os.environ.get("LD_PRELOAD", ""):
        os.environ["LD_PRELOAD"] = str(openmp)
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.peers.vllm_cpu", *sys.argv[1:]])


class Peer:
    def __init__(self, model: str, texts: Texts) -> None:
        from vllm import LLM

        self.requests = 0
        self.llm = LLM(
            model=model,
            dtype="bfloat16",
            enable_prefix_caching=True,
            max_model_len=2048,
            max_num_seqs=max(map(len, texts.runs)),
            num_gpu_blocks_override=texts.cache_tokens // BLOCK,
            kv_cache_memory_bytes=4 << 30,  # else it wants nine tenths of the memory to be free
            disable_log_stats=True,
        )

    def settings(self, tokens: int, **more: int):
        from vllm import SamplingParams

        return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, **more)

    def generate(self, prompts: list, tokens: int, **more: int) -> None:
        self.llm.generate(prompts, self.settings(tokens, **more), use_tqdm=False)

    def stream(self, text: str, tokens: int) -> Iterator[int]:
        """Greedy tokens of one query."""
        self.requests += 1
        engine, made = self.llm.llm_engine, 0
        engine.add_request(f"stream {self.requests}", text, self.settings(tokens))
        while engine.has_unfinished_requests():
            for output in engine.step():
                yield from output.outputs[0].token_ids[made:]
                made = len(output.outputs[0].token_ids)


def main() -> None:
    texts, model = arguments()
    environment(texts)
    if NO_AMX in os.environ:
        import torch

        torch.cpu._is_amx_tile_supported = lambda: False
    peer = Peer(model, texts)
    tokenizer = peer.llm.get_tokenizer()
    ids = tokenizer(texts.prefix).input_ids
    peer.generate(["warm up " + texts.prefix], 2)
    _, prefill = timed(lambda: peer.generate([texts.prefix], 1))

    list(peer.stream(texts.whole(1)[0], 4))
    _, ttft = timed(lambda: list(peer.stream(texts.whole(2)[0], 1)))
    decode = Steps.take(peer.stream(texts.whole(3)[0], 1 + texts.new))

    peer.generate(texts.whole(4), 4)
    _, batch = timed(lambda: peer.generate(texts.whole(5), texts.new_batch))

    answer = tokenizer(texts.answer).input_ids[: texts.answer_tokens]

    def score(queries: list[str]) -> None:
        contexts = [ids + tokenizer(q, add_special_tokens=False).input_ids for q in queries]
        prompts = [{"prompt_token_ids": context + answer} for context in contexts]
        peer.generate(prompts, 1, prompt_logprobs=0)

    score(texts.suffixes(6)[:1])
    scored = texts.suffixes(7)[: texts.scored]
    _, scoring = timed(lambda: score(scored))

    report(
        "vLLM",
        "vllm-cpu",
        len(ids),
        decode.tokens,
        prefill=len(ids) / prefill,
        ttft_ms=1e3 * ttft,
        decode_1=decode.rate,
        urial_32=len(texts.suffixes(5)) * texts.new_batch / batch,
        score=len(scored) * len(answer) / scoring,
    )


if __name__ == "__main__":
    main()
