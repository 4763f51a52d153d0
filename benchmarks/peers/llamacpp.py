"""llama.cpp through the low-level interface of llama-cpp-python: the prefix's cells of the cache
belong to every sequence, so they are computed and held once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import llama_cpp as llama
import numpy as np

from benchmarks.peers.common import Steps, Texts, arguments, report, timed

PREFIX = 0  # the sequence that holds the prefix alone; the queries' are numbered from 1
MOST = 4096  # tokens in one call


class Row(NamedTuple):
    """A token that goes through the model."""

    token: int
    position: int
    sequence: int
    wanted: bool  # are its logits?


class Peer:
    def __init__(self, model: str, texts: Texts) -> None:
        self.texts = texts
        llama.llama_backend_init()
        silent = llama.llama_log_callback(lambda *_: None)
        llama.llama_log_set(silent, None)
        self._kept = silent  # as long as llama.cpp may call it
        self.model = llama.llama_model_load_from_file(
            model.encode(), llama.llama_model_default_params()
        )
        if not self.model:
            raise SystemExit(f"llama.cpp does not load {model}")
        self.vocabulary = llama.llama_model_get_vocab(self.model)
        self.tokens_known = llama.llama_vocab_n_tokens(self.vocabulary)
        self.context = llama.llama_init_from_model(self.model, self._settings())
        self.memory = llama.llama_get_memory(self.context)
        self.batch = llama.llama_batch_init(MOST, 0, 1)
        self.length = len(self.ids(texts.prefix, first=True))

    def _settings(self) -> Any:
        settings = llama.llama_context_default_params()
        settings.n_ctx = self.texts.cache_tokens
        settings.n_batch, settings.n_ubatch = MOST, 512
        settings.n_seq_max = 1 + max(map(len, self.texts.runs))
        settings.n_threads = settings.n_threads_batch = self.texts.threads
        settings.kv_unified = True  # else no cell can belong to two sequences
        # Its flash attention also visits the cells that a sequence does not see: with 32 of them
        # and for short queries it is two to four times as slow, the prefix alone a tenth faster.
        settings.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.no_perf = True
        return settings

    def ids(self, text: str, *, first: bool = False) -> list[int]:
        """Tokens of a text; `first`: with what the model wants at the start of everything."""
        raw = text.encode()
        found = (llama.llama_token * (len(raw) + 8))()
        n = llama.llama_tokenize(
            self.vocabulary, raw, len(raw), found, len(found), first, not first
        )
        return list(found[:n])

    def run(self, rows: list[Row]) -> np.ndarray:
        """Logits of the rows that want them, in order: [wanted, V]."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, row in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = row.token, row.position, row.wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, row.sequence
        if code := llama.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode returned {code}")
        shape = sum(row.wanted for row in rows), self.tokens_known
        return np.ctypeslib.as_array(llama.llama_get_logits(self.context), shape)

    def prefill(self) -> None:
        """The prefix, into an empty cache."""
        llama.llama_memory_clear(self.memory, True)
        ids = self.ids(self.texts.prefix, first=True)
        last = len(ids) - 1
        self.run([Row(token, i, PREFIX, i == last) for i, token in enumerate(ids)]).argmax(1)

    def fork(self, sequences: int) -> None:
        """Sequences 1, 2, … hold the prefix and nothing else."""
        for sequence in range(1, sequences + 1):
            llama.llama_memory_seq_rm(self.memory, sequence, -1, -1)
            llama.llama_memory_seq_cp(self.memory, PREFIX, sequence, -1, -1)

    def stream(self, texts: list[str], tokens: int) -> Iterator[list[int]]:
        """Greedy tokens of all queries at once, those of each step together."""
        self.fork(len(texts))
        queries = [self.ids(text) for text in texts]
        rows = [
            Row(token, self.length + i, sequence, i == len(ids) - 1)
            for sequence, ids in enumerate(queries, 1)
            for i, token in enumerate(ids)
        ]
        chosen = self.run(rows).argmax(1).tolist()
        yield chosen
        ends = [self.length + len(ids) for ids in queries]
        for step in range(tokens - 1):
            given = enumerate(zip(chosen, ends, strict=True), 1)
            rows = [Row(token, end + step, sequence, True) for sequence, (token, end) in given]
            chosen = self.run(rows).argmax(1).tolist()
            yield chosen

    def score(self, texts: list[str], answer: list[int]) -> None:
        """Rank and log-probability of the answer's tokens after each query."""
        self.fork(len(texts))
        for sequence, text in enumerate(texts, 1):
            ids = self.ids(text)
            first = len(ids) - 1
            line = enumerate([*ids, *answer[:-1]])
            logits = self.run([Row(t, self.length + i, sequence, i >= first) for i, t in line])
            target = np.take_along_axis(logits, np.array(answer)[:, None], 1)  # [A, 1]
            _ = np.count_nonzero(logits > target, axis=1) + 1
            most = logits.max(1, keepdims=True)
            _ = target - most - np.log(np.exp(logits - most).sum(1, keepdims=True))


def main() -> None:
    texts, model = arguments()
    peer = Peer(model, texts)
    peer.prefill()
    _, prefill = timed(peer.prefill)

    list(peer.stream(texts.suffixes(1)[:1], 4))
    _, ttft = timed(lambda: list(peer.stream(texts.suffixes(2)[:1], 1)))
    decode = Steps.take(t for [t] in peer.stream(texts.suffixes(3)[:1], 1 + texts.new))

    list(peer.stream(texts.suffixes(4), 2))
    _, batch = timed(lambda: list(peer.stream(texts.suffixes(5), texts.new_batch)))

    answer = peer.ids(texts.answer, first=True)[: texts.answer_tokens]
    peer.score(texts.suffixes(6)[:1], answer)
    scored = texts.suffixes(7)[: texts.scored]
    _, score = timed(lambda: peer.score(scored, answer))

    report(
        "llama.cpp",
        "llama-cpp-python",
        peer.length,
        decode.tokens,
        prefill=peer.length / prefill,
        ttft_ms=1e3 * ttft,
        decode_1=decode.rate,
        urial_32=len(texts.suffixes(5)) * texts.new_batch / batch,
        score=len(scored) * len(answer) / score,
    )


if __name__ == "__main__":
    main()
