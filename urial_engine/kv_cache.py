"""The KV-cache as a tree of segments: token ids go in; the blocks that hold them come
out.

A segment is a run of tokens whose keys and values stand in whole blocks; a sequence is the path
from the root to its own growing tail, the one `live` segment of the path. Every segment starts at a
multiple of the block size, and ends at one where anything hangs below it: attaching in the middle
of a segment splits it there, and copies the block in which the new tail leaves it. So blocks are
shared whole or not at all, and a block's keys are always reduced together.

Room is promised before it is used: a tail is attached only if all the blocks it may ever need can
be had, so nothing that runs is ever stopped for lack of them. What nobody uses stays for who comes
with the same tokens, and gives way, the longest unused first, to who needs blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol


class BlockPool(Protocol):
    """The part of a backend that holds the blocks, `block_size` tokens each."""

    block_size: int

    def copy_block(self, source: int, target: int) -> None: ...


@dataclass(eq=False, slots=True)
class Segment:
    """Tokens start .. end, and the blocks that hold them. Only computed tokens count."""

    parent: Segment | None
    start: int
    tokens: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    children: list[Segment] = field(default_factory=list)
    users: int = 0  # live tails and pins at or below
    live: bool = False  # a sequence grows it; then it has no children
    pinned: int = 0  # how many pins keep it
    quota: int = 0  # blocks promised to it and not yet taken
    last_used: int = 0  # when it was last let go, in ticks of the cache

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    def path(self) -> list[Segment]:
        """From the root to here."""
        path, segment = [], self
        while segment.parent is not None:
            path.append(segment)
            segment = segment.parent
        return [segment, *reversed(path)]


def common_run(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two lists have in common from their beginning."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:  # a[:low] == b[:low] and a[:high] != b[:high]
        middle = (low + high) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle)
    return low


class KVCache:
    """The tree over a pool of `blocks` blocks, which it owns from now on."""

    def __init__(self, pool: BlockPool, blocks: int) -> None:
        self.blocks = blocks
        self.block_size = pool.block_size
        self.root = Segment(parent=None, start=0, users=1)
        self._pool = pool
        self._free = list(reversed(range(blocks)))
        self._pinned: list[list[int]] = []  # texts
        self._pinned_blocks = 0  # of all of them
        self._held = 0  # blocks of segments with users
        self._promised = 0  # the sum of all quotas
        self._ticks = count(1)

    @property
    def available(self) -> int:
        """Blocks that can still be promised: free ones and those that nobody uses."""
        return self.blocks - self._held - self._promised

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def segments(self) -> Iterator[Segment]:
        """All but the root."""
        stack = list(self.root.children)
        while stack:
            segment = stack.pop()
            stack += segment.children
            yield segment

    def table(self, leaf: Segment) -> list[int]:
        """The physical block at each absolute block index."""
        return [block for segment in leaf.path() for block in segment.blocks]

    def match(self, ids: list[int], limit: int) -> tuple[Segment, int]:
        """The segment in which the longest run of ids[:limit] in the tree ends, and its length."""
        return _descend(self.root, ids[:limit])

    def room(self, ids: list[int], limit: int) -> int:
        """How many blocks a path for `ids` could have, were everything else finished and gone."""
        shared = max((common_run(text, ids[:limit]) for text in self._pinned), default=0)
        return self.blocks - self._pinned_blocks + shared // self.block_size

    def attach(self, ids: list[int], limit: int, blocks: int) -> Segment | None:
        """A live tail for `ids` that begins with what the tree has of ids[:limit].

        It may grow until its whole path has `blocks` blocks. None where they cannot be had now.
        """
        segment, run = self.match(ids, limit)
        cut = run - run % self.block_size
        parent = self._cut(segment, cut)
        leaf = Segment(parent=parent, start=cut, live=True)
        quota = blocks - cut // self.block_size
        self._hold(leaf)
        if self.available < quota:
            self._let_go(leaf)
            return None
        self._promise(leaf, quota)
        parent.children.append(leaf)
        if run > cut:
            self._copy_start(segment, leaf, run - cut)
        return leaf

    def grow(self, leaf: Segment, end: int) -> bool:
        """Have blocks for the tokens up to `end`, which are about to be computed. Were they new?"""
        lacking = self.blocks_for(end - leaf.start) - len(leaf.blocks)
        for _ in range(lacking):
            self._take(leaf)
        return lacking > 0

    def append(self, leaf: Segment, ids: list[int]) -> None:
        """These tokens have been computed."""
        leaf.tokens += ids
        assert leaf.live and len(leaf.tokens) <= len(leaf.blocks) * self.block_size

    def release(self, leaf: Segment, *, keep: bool = True) -> None:
        """Nothing more will be appended. What was computed stays for who comes, unless told."""
        self._promise(leaf, -leaf.quota)
        leaf.live = False
        surplus = leaf.blocks[self.blocks_for(len(leaf.tokens)) :]
        del leaf.blocks[len(leaf.blocks) - len(surplus) :]
        self._free += surplus
        self._held -= len(surplus)
        self._let_go(leaf)
        if not keep or self._stands_elsewhere(leaf):
            self._remove(leaf)
        else:
            self._drop_beginnings(leaf)

    def pin(self, leaf: Segment) -> None:
        """In place of `release`: what was computed stays until `unpin`."""
        self._promise(leaf, -leaf.quota)
        leaf.live = False
        self._pinned.append(_tokens(leaf))
        for part in leaf.path():
            self._pinned_blocks += 0 if part.pinned else len(part.blocks)
            part.pinned += 1

    def unpin(self, leaf: Segment) -> None:
        """From now on it gives way as all else does."""
        self._pinned.remove(_tokens(leaf))
        for part in leaf.path():
            part.pinned -= 1
            self._pinned_blocks -= 0 if part.pinned else len(part.blocks)
        self._let_go(leaf)

    def clear(self) -> None:
        """What nobody uses goes. (The longest match of a text may be a copy of pinned tokens, whose
        own blocks are then out of its reach.)"""
        while idle := [s for s in self.segments() if not s.users and not s.children]:
            for segment in idle:
                self._remove(segment)

    def _copy_start(self, source: Segment, leaf: Segment, tokens: int) -> None:
        """Copy the tokens of `source`'s first block, unless the copy needs that very block's room.

        Then they are computed again: a request that fits in the pool alone is never kept waiting.
        """
        idle = 0 if source.users else len(source.blocks)
        if self.blocks - self._held - idle == 0:
            return
        source.users += 1  # so that making room for the copy does not evict it
        self._pool.copy_block(source.blocks[0], self._take(leaf))
        source.users -= 1
        leaf.tokens = source.tokens[:tokens]

    def _cut(self, segment: Segment, cut: int) -> Segment:
        """The segment that ends at `cut`, to hang something below. Splits `segment` if need be."""
        if cut == segment.start:
            return segment.parent or segment
        if cut == segment.end and not segment.live:
            return segment
        tokens, blocks = cut - segment.start, (cut - segment.start) // self.block_size
        upper = Segment(
            parent=segment.parent,
            start=segment.start,
            tokens=segment.tokens[:tokens],
            blocks=segment.blocks[:blocks],
            children=[segment],
            users=segment.users,
            pinned=segment.pinned,
            last_used=segment.last_used,
        )
        assert segment.parent is not None
        siblings = segment.parent.children
        siblings[siblings.index(segment)] = upper
        segment.parent, segment.start = upper, cut
        del segment.tokens[:tokens], segment.blocks[:blocks]
        return upper

    def _promise(self, leaf: Segment, blocks: int) -> None:
        leaf.quota += blocks
        self._promised += blocks
        assert leaf.quota >= 0

    def _hold(self, segment: Segment) -> None:
        for part in segment.path():
            self._held += 0 if part.users else len(part.blocks)
            part.users += 1

    def _let_go(self, segment: Segment) -> None:
        tick = next(self._ticks)
        for part in segment.path():
            part.users -= 1
            part.last_used = tick
            self._held -= 0 if part.users else len(part.blocks)

    def _take(self, leaf: Segment) -> int:
        """One block of the leaf's quota, with whatever it held before."""
        while not self._free:
            idle = (s for s in self.segments() if not s.users and not s.children)
            self._remove(min(idle, key=lambda segment: segment.last_used))
        block = self._free.pop()
        self._promise(leaf, -1)
        self._held += 1
        leaf.blocks.append(block)
        return block

    def _stands_elsewhere(self, leaf: Segment) -> bool:
        """The same tokens stand on another path, or there are none."""
        assert leaf.parent is not None
        leaf.parent.children.remove(leaf)
        _, run = _descend(leaf.parent, leaf.tokens)
        leaf.parent.children.append(leaf)
        return run == len(leaf.tokens)

    def _drop_beginnings(self, leaf: Segment) -> None:
        """What beside it holds no more than its first tokens serves nobody any longer: a text that
        was read on and on would leave a block for each time."""
        assert leaf.parent is not None
        for other in list(leaf.parent.children):
            count = len(other.tokens)
            if other.users or other.children or other is leaf or count > len(leaf.tokens):
                continue
            alike = not count or other.tokens[-1] == leaf.tokens[count - 1]  # most are not
            if alike and other.tokens == leaf.tokens[:count]:
                self._remove(other)

    def _remove(self, segment: Segment) -> None:
        assert segment.parent is not None and not segment.users and not segment.children
        segment.parent.children.remove(segment)
        self._free += segment.blocks


def _tokens(leaf: Segment) -> list[int]:
    """Of its whole path."""
    return [token for part in leaf.path() for token in part.tokens]


def _descend(top: Segment, ids: list[int]) -> tuple[Segment, int]:
    """Below `top`, the longest run of `ids`: the segment in which it ends, and its length."""
    best, ways = (top, 0), [(top, 0)]  # equal texts that run side by side give several ways
    while ways and best[1] < len(ids):
        segment, run = ways.pop()
        rest = ids[run:]
        for child in segment.children:
            beat = best[1] - run
            either = min(len(child.tokens), len(rest))
            if beat < either and child.tokens[beat] != rest[beat]:
                continue  # one look, where thousands of finished texts hang below a prefix
            more = common_run(child.tokens, rest)
            if run + more > best[1]:
                best = (child, run + more)
            if 0 < more == len(child.tokens):
                ways.append((child, run + more))
    return best
