"""Hugging Face transformers: keys and values of the prefix are computed once and taken up by all.

One query cuts them back to the prefix after use; a batch repeats them for every sequence, as a
DynamicCache cannot share them. Eager: compiled for a static cache, one sequence decodes a tenth
faster, and every length of a prompt takes its 45 seconds to compile.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.peers.common import Steps, Texts, arguments, report, timed


class Peer:
    def __init__(self, model: str, texts: Texts) -> None:
        torch.set_num_threads(texts.threads)
        self.texts = texts
        self.tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.model = AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()
        self.prefix_ids = self.tokenizer(texts.prefix, return_tensors="pt").input_ids  # [1, P]
        self.length = self.prefix_ids.shape[1]

    def ids(self, texts: list[str]) -> transformers.BatchEncoding:
        """Token ids and mask of what follows the prefix, [B, longest] each."""
        return self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)

    def step(self, ids: torch.Tensor, cache: transformers.Cache, **more: torch.Tensor):
        """The greedy next token of each sequence, [B, 1]."""
        out = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **more)
        return out.logits[:, -1].argmax(-1, keepdim=True)

    def cut(self, cache: transformers.Cache) -> None:
        """Back to the prefix."""
        cache.crop(self.length - cache.get_seq_length())  # less than 0: how many go

    def prefill(self) -> transformers.Cache:
        ids = self.tokenizer(self.texts.prefix, return_tensors="pt").input_ids
        return self.model(ids, use_cache=True, logits_to_keep=1).past_key_values

    def stream(self, text: str, cache: transformers.Cache, tokens: int) -> Iterator[int]:
        """Greedy tokens of one query; then the cache holds the prefix alone again."""
        token = self.step(self.ids([text]).input_ids, cache)
        yield int(token)
        for _ in range(tokens - 1):
            token = self.step(token, cache)
            yield int(token)
        self.cut(cache)

    def batch(self, texts: list[str], cache: transformers.Cache, tokens: int) -> None:
        """Greedy tokens of all queries at once, padded on the left."""
        cache = copy.deepcopy(cache)
        cache.batch_repeat_interleave(len(texts))
        given = self.ids(texts)
        ones = torch.ones(len(texts), self.length, dtype=torch.long)
        mask = torch.cat([ones, given.attention_mask], 1)
        positions = mask.cumsum(1)[:, self.length :] - 1
        token = self.step(given.input_ids, cache, attention_mask=mask, position_ids=positions)
        positions = positions[:, -1:]
        for _ in range(tokens - 1):
            mask = torch.cat([mask, ones[:, :1]], 1)
            positions = positions + 1
            token = self.step(token, cache, attention_mask=mask, position_ids=positions)

    def score(self, texts: list[str], cache: transformers.Cache, answer: torch.Tensor) -> None:
        """Rank and log-probability of the answer's tokens after each query, one query at a time
        (a padded batch of them is slower)."""
        for text in texts:
            ids = torch.cat([self.ids([text]).input_ids[0], answer])[None]
            out = self.model(
                ids, past_key_values=cache, use_cache=True, logits_to_keep=len(answer) + 1
            )
            self.cut(cache)
            logits = out.logits[0, :-1].float()  # [A, V]
            target = logits.gather(1, answer[:, None])
            _ = (logits > target).sum(1) + 1
            _ = target[:, 0] - logits.logsumexp(1)


@torch.inference_mode()
def main() -> None:
    texts, model = arguments()
    peer = Peer(model, texts)
    peer.prefill()
    cache, prefill_seconds = timed(peer.prefill)

    list(peer.stream(texts.suffixes(1)[0], cache, 4))
    _, ttft = timed(lambda: list(peer.stream(texts.suffixes(2)[0], cache, 1)))
    decode = Steps.take(peer.stream(texts.suffixes(3)[0], cache, 1 + texts.new))

    peer.batch(texts.suffixes(4), cache, 2)
    _, batch = timed(lambda: peer.batch(texts.suffixes(5), cache, texts.new_batch))

    answer = peer.tokenizer(texts.answer, return_tensors="pt").input_ids[0, : texts.answer_tokens]
    peer.score(texts.suffixes(6)[:1], cache, answer)
    scored = texts.suffixes(7)[: texts.scored]
    _, score = timed(lambda: peer.score(scored, cache, answer))

    report(
        "transformers",
        "transformers",
        peer.length,
        decode.tokens,
        prefill=peer.length / prefill_seconds,
        ttft_ms=1e3 * ttft,
        decode_1=decode.rate,
        urial_32=len(texts.suffixes(5)) * texts.new_batch / batch,
        score=len(scored) * len(answer) / score,
    )


if __name__ == "__main__":
    main()
