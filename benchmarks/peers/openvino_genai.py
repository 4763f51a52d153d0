"""OpenVINO GenAI's continuous batching on the CPU in bf16: its prefix cache holds the blocks of the
prefix once for all requests. It has no call that ranks given tokens, so no `score`.
"""

from __future__ import annotations

from collections.abc import Iterator

import openvino_genai as genai

from benchmarks.peers.common import Steps, Texts, arguments, report, timed

BLOCK = 32  # tokens of a cache block on a CPU


class Peer:
    def __init__(self, model: str, texts: Texts) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.max_num_batched_tokens = 2048
        scheduler.max_num_seqs = 64
        scheduler.num_kv_blocks = texts.cache_tokens // BLOCK
        properties = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": texts.threads}
        self.pipeline = genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)
        self.requests = 0

    def settings(self, tokens: int) -> genai.GenerationConfig:
        """Greedy, and no end but this many tokens."""
        settings = genai.GenerationConfig()
        settings.max_new_tokens = settings.min_new_tokens = tokens
        settings.ignore_eos, settings.do_sample = True, False
        settings.apply_chat_template = False
        return settings

    def generate(self, texts: list[str], tokens: int) -> None:
        results = self.pipeline.generate(texts, [self.settings(tokens)] * len(texts))
        if len(results) != len(texts):
            raise RuntimeError(f"{len(results)} results of {len(texts)} texts")

    def stream(self, text: str, tokens: int) -> Iterator[int]:
        """Greedy tokens of one query."""
        self.requests += 1
        handle = self.pipeline.add_request(self.requests, text, self.settings(tokens))
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
            for output in handle.read().values() if handle.can_read() else ():
                yield from output.generated_ids


def main() -> None:
    texts, model = arguments()
    peer = Peer(model, texts)
    tokens = peer.pipeline.get_tokenizer().encode(texts.prefix).input_ids.shape[1]
    peer.generate(["warm up " + texts.prefix], 2)
    _, prefill = timed(lambda: peer.generate([texts.prefix], 1))

    list(peer.stream(texts.whole(1)[0], 4))
    _, ttft = timed(lambda: list(peer.stream(texts.whole(2)[0], 1)))
    decode = Steps.take(peer.stream(texts.whole(3)[0], 1 + texts.new))

    peer.generate(texts.whole(4), texts.new_batch)
    _, batch = timed(lambda: peer.generate(texts.whole(5), texts.new_batch))

    report(
        "OpenVINO GenAI",
        "openvino-genai",
        tokens,
        decode.tokens,
        prefill=tokens / prefill,
        ttft_ms=1e3 * ttft,
        decode_1=decode.rate,
        urial_32=len(texts.suffixes(5)) * texts.new_batch / batch,
    )


if __name__ == "__main__":
    main()
