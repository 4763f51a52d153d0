"""Tokens in, pieces out: however an answer comes, its pieces join to the clean one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from urial_engine.outputs import StreamEvent
from urial_engine.prompt import FENCE, UrialPrompt
from urial_engine.server.answers import Answer, Piece

TEXTS = ["```", "`", "\n", "\n\n", "```py", "# Query", "# Qu", " ", "a", "b c", "", "ok.\n"]


def piece(text: str, token: int, reason: str | None = None) -> Piece:
    return Piece.of(StreamEvent(0, text, [token], None, reason is not None, reason, None, 0), None)


@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=14))
def test_pieces_join_to_the_clean_answer(texts: list[str]) -> None:
    prompt = UrialPrompt("")
    answer, told, pushed = Answer(prompt), list[Piece](), 0
    for place, text in enumerate(texts):
        told += answer.push(piece(text, place, "length" if place == len(texts) - 1 else None))
        pushed += 1
        if answer.ended:
            break
    whole = "".join(texts[:pushed])
    assert answer.ended and "".join(one.text for one in told) == prompt.clean(whole)
    ids = [token.id for one in told for token in one.tokens]
    assert ids == list(range(len(ids))), "none is left out before the end, none comes twice"
    assert [one.finish_reason for one in told[:-1]] == [None] * (len(told) - 1)
    fenced = pushed < len(texts) or told[-1].stop_reason == FENCE
    assert told[-1].finish_reason == ("stop" if fenced else "length")


def test_without_a_form_every_piece_comes_at_once() -> None:
    answer = Answer(None)
    assert answer.push(piece("``", 1)) == [piece("``", 1)] and not answer.ended
    assert answer.push(piece("", 2, "stop")) == [piece("", 2, "stop")] and answer.ended
