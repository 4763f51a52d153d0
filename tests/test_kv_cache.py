"""The tree of segments: what is shared is right, what is promised is kept, what is used stays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.fakes import check_books
from urial_engine.backends.host_memory import available_memory
from urial_engine.errors import CapacityError, ParameterError
from urial_engine.kv_cache import KVCache, Segment, common_run
from urial_engine.kv_cache_budget import GIB, cache_blocks

SIZE = 4  # tokens a block


class Pool:
    """Blocks that hold the token ids themselves, so that what a path reads can be seen."""

    block_size = SIZE

    def __init__(self, blocks: int) -> None:
        self.held = [["?"] * SIZE for _ in range(blocks)]  # "?" is what a block held before

    def copy_block(self, source: int, target: int) -> None:
        self.held[target] = list(self.held[source])


class Tree(KVCache):
    """A cache whose blocks can be read."""

    def __init__(self, blocks: int) -> None:
        self.pool = Pool(blocks)
        super().__init__(self.pool, blocks)

    def write(self, leaf: Segment, ids: list[int]) -> None:
        """Compute some tokens."""
        start = leaf.end
        self.grow(leaf, start + len(ids))
        table = self.table(leaf)
        for position, token in enumerate(ids, start):
            self.pool.held[table[position // SIZE]][position % SIZE] = token
        self.append(leaf, ids)

    def read(self, leaf: Segment) -> list[int]:
        """The ids of the whole path, as its blocks hold them."""
        return [t for block in self.table(leaf) for t in self.pool.held[block]][: leaf.end]

    def keep(self, ids: list[int]) -> Segment:
        """A finished text."""
        leaf = self.attach(ids, len(ids), self.blocks_for(len(ids)))
        assert leaf is not None
        self.write(leaf, ids[leaf.end :])
        self.release(leaf)
        return leaf


IDS = st.lists(st.integers(1, 2), min_size=1, max_size=14)  # few tokens: many common beginnings


@dataclass
class Live:
    ids: list[int]  # all that it will read
    leaf: Segment
    blocks: int


class Machine(RuleBasedStateMachine):
    """Any order of what a scheduler may do, with the ids beside it."""

    @initialize(blocks=st.integers(2, 12))
    def start(self, blocks: int) -> None:
        self.tree = Tree(blocks)
        self.live: list[Live] = []
        self.pinned: list[tuple[list[int], Segment]] = []

    @rule(ids=IDS, limit=st.integers(0, 14), more=st.integers(0, 6))
    def attach(self, ids: list[int], limit: int, more: int) -> None:
        tree, limit = self.tree, min(limit, len(ids))
        blocks = tree.blocks_for(len(ids) + more)
        segment, run = tree.match(ids, limit)
        assert self.tokens(segment)[:run] == ids[:run]
        room = tree.room(ids, limit)
        leaf = tree.attach(ids, limit, blocks)
        if leaf is not None:
            assert blocks <= room
            assert run // SIZE * SIZE <= leaf.end <= run <= limit
            self.live.append(Live(ids + [3] * more, leaf, blocks))
        else:
            assert self.live or blocks > room, "what fits alone waits for nobody"

    @precondition(lambda self: self.live)
    @rule(data=st.data(), count=st.integers(1, 6))
    def compute(self, data: st.DataObject, count: int) -> None:
        one = data.draw(st.sampled_from(self.live))
        end = one.leaf.end
        self.tree.write(one.leaf, one.ids[end : end + count])

    @precondition(lambda self: self.live)
    @rule(data=st.data(), count=st.integers(1, 6))
    def fail_to_compute(self, data: st.DataObject, count: int) -> None:
        one = data.draw(st.sampled_from(self.live))
        self.tree.grow(one.leaf, min(one.leaf.end + count, len(one.ids)))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), keep=st.booleans())
    def release(self, data: st.DataObject, keep: bool) -> None:
        one = data.draw(st.sampled_from(self.live))
        self.live.remove(one)
        ids = self.tokens(one.leaf)
        self.tree.release(one.leaf, keep=keep)
        assert not keep or self.tree.match(ids, len(ids))[1] == len(ids)

    @precondition(lambda self: len(self.pinned) < 2)
    @rule(ids=IDS)
    def pin(self, ids: list[int]) -> None:
        pinned = sum(self.tree.blocks_for(len(one)) for one, _ in self.pinned)
        if pinned + self.tree.blocks_for(len(ids)) < self.tree.blocks // 2:
            leaf = self.tree.attach(ids, len(ids), self.tree.blocks_for(len(ids)))
            if leaf is not None:
                self.tree.write(leaf, ids[leaf.end :])
                self.tree.pin(leaf)
                self.pinned.append((ids, leaf))

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.pinned))
        self.pinned.remove(one)
        self.tree.unpin(one[1])

    @staticmethod
    def tokens(leaf: Segment) -> list[int]:
        return [token for segment in leaf.path() for token in segment.tokens]

    @invariant()
    def the_books_are_right(self) -> None:
        if hasattr(self, "tree"):
            check_books(self.tree)

    @invariant()
    def every_path_reads_its_own_tokens(self) -> None:
        if hasattr(self, "tree"):
            for one in self.live:
                assert self.tree.read(one.leaf) == one.ids[: one.leaf.end]
            for segment in self.tree.segments():
                assert self.tree.read(segment) == self.tokens(segment)

    @invariant()
    def what_is_pinned_stays(self) -> None:
        for ids, leaf in getattr(self, "pinned", []):
            assert self.tree.match(ids, len(ids))[1] == len(ids)
            assert self.tree.read(leaf) == ids


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_whole_blocks_are_shared_and_the_partial_one_is_copied() -> None:
    tree = Tree(10)
    first = tree.keep([1, 2, 3, 4, 5, 6])
    leaf = tree.attach([1, 2, 3, 4, 5, 7, 8], 6, 2)
    assert leaf is not None
    assert (leaf.start, leaf.end) == (4, 5), "5 is common, and its block is not whole"
    assert tree.table(leaf)[0] == tree.table(first)[0]
    assert tree.table(leaf)[1] != tree.table(first)[1]
    tree.write(leaf, [7, 8])
    assert (tree.read(leaf), tree.read(first)) == ([1, 2, 3, 4, 5, 7, 8], [1, 2, 3, 4, 5, 6])


def test_a_running_text_is_shared_as_far_as_it_is_computed() -> None:
    tree = Tree(10)
    one = tree.attach([1] * 12, 11, 3)
    assert one is not None
    tree.write(one, [1] * 9)
    other = tree.attach([1] * 12, 11, 3)
    assert other is not None
    assert (other.end, other.parent) == (9, one.parent)
    tree.write(one, [1] * 3)
    tree.write(other, [1] * 3)
    assert tree.table(one)[:2] == tree.table(other)[:2]


def test_the_longest_unused_gives_way_first_and_leaves_before_their_parents() -> None:
    tree = Tree(4)
    tree.keep([1] * 4)
    tree.keep([2] * 4)
    tree.keep([1] * 4 + [3] * 4)
    assert tree.available == 4
    tree.keep([4] * 8)
    assert tree.match([2] * 4, 4)[1] == 0
    assert tree.match([1] * 4 + [3] * 4, 8)[1] == 8
    tree.keep([5] * 4)
    assert tree.match([1] * 4 + [3] * 4, 8)[1] == 4


def test_equal_texts_are_kept_once() -> None:
    tree = Tree(8)
    ids = [1, 2, 3, 4, 5, 6]
    pair = [tree.attach(ids, 5, 2) for _ in range(2)]
    for leaf in pair:
        assert leaf is not None
        tree.write(leaf, ids)
    for leaf in pair:
        assert leaf is not None
        tree.release(leaf)
    assert sum(len(segment.blocks) for segment in tree.segments()) == 2


def test_a_copy_never_evicts_its_own_source() -> None:
    tree = Tree(3)
    tree.keep([1, 2, 3, 4, 5, 6])
    leaf = tree.attach([1, 2, 3, 4, 5, 7], 5, 3)
    assert leaf is not None
    assert leaf.end == 5, "one block is free for it"
    tree.release(leaf, keep=False)
    tree.keep([1, 2, 3, 4, 5, 6, 7, 8, 9])
    leaf = tree.attach([1, 2, 3, 4, 5, 6, 7, 8, 9, 9], 9, 3)
    assert leaf is not None
    assert leaf.end == 8, "with no room beside its source the copy is left out"


def test_a_text_that_is_read_on_and_on_is_kept_once() -> None:
    tree, ids = Tree(20), list(range(1, 40))
    for end in range(1, 40):
        tree.keep(ids[:end])
        held = sum(len(segment.blocks) for segment in tree.segments())
        assert held == tree.blocks_for(end), "no block for each time that it was read"
    tree.keep([*ids[:30], 99])
    assert tree.match(ids, 39)[1] == 39, "another end takes nothing away"


def test_what_is_pinned_is_no_room_for_others() -> None:
    tree = Tree(6)
    leaf = tree.attach([1] * 10, 9, 3)
    assert leaf is not None
    tree.write(leaf, [1] * 10)
    tree.pin(leaf)
    assert tree.room([2] * 20, 20) == 3
    assert tree.room([1] * 20, 20) == 3 + 2, "but two blocks of it can be shared"
    assert tree.room([1] * 20, 5) == 3 + 1
    assert tree.attach([2] * 20, 20, 4) is None
    other = tree.attach([1] * 20, 20, 5)
    assert other is not None
    tree.release(other)
    tree.unpin(leaf)
    assert tree.room([2] * 20, 20) == 6 and tree.attach([2] * 20, 20, 6) is not None


@pytest.mark.parametrize(
    ("a", "b", "run"), [([], [], 0), ([1], [2], 0), ([1, 2], [1, 2, 3], 2), ([1, 3], [1, 2], 1)]
)
def test_common_run(a: list[int], b: list[int], run: int) -> None:
    assert common_run(a, b) == common_run(b, a) == run


def test_a_container_has_less_than_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/sys/fs/cgroup/memory.max": 5000, "/sys/fs/cgroup/memory.current": 2000}
    monkeypatch.setattr("urial_engine.backends.host_memory._number", files.get)
    assert available_memory() == 3000


def test_the_budget() -> None:
    budget = partial(cache_blocks, room=GIB // 2)
    assert budget(1, block_bytes=GIB // 8, most=1) == 8, "a wish is fulfilled"
    assert budget(None, block_bytes=1, most=7) == 7
    assert budget(None, block_bytes=GIB // 64, most=1 << 40) == 32
    assert budget(None, block_bytes=2 * GIB, most=1) == 1
    assert available_memory() > 0
    with pytest.raises(CapacityError, match=r"kv_cache_gib=0\.5 does not hold one block"):
        budget(0.5, block_bytes=GIB, most=1)
    for gib in (0, -1, float("nan")):
        with pytest.raises(ParameterError, match="kv_cache_gib"):
            budget(gib, block_bytes=1, most=1)
