"""What may wait: the room is never overfull, and API keys are told apart without being kept."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.gateway.limits import Keys, Limits, Place, RefusedError, Room


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["enter", "keep", "let go", "leave", "again"]),
            st.integers(0, 5),
            st.integers(0, 60),
        ),
        max_size=60,
    )
)
@settings(deadline=None)
def test_the_room_is_never_overfull_and_is_empty_in_the_end(events: list[Any]) -> None:
    limits = Limits(requests=4, bytes=100, per_key=2, body_bytes=50)
    room = Room(limits)
    places: list[Place] = []
    refused: list[RefusedError] = []
    waiting: dict[Place, int] = {}
    for kind, which, size in events:
        try:
            if kind == "enter":
                key = bytes([which % 3])
                places.append(Place(room, key))
                waiting[places[-1]] = which % 3
            elif places:
                place = places[which % len(places)]
                if kind == "keep":
                    place.keep(size)
                elif kind == "let go":
                    place.let_go()
                elif kind == "leave":
                    place.leave()
                    waiting.pop(place, None)
        except RefusedError as error:
            refused.append(error)
        assert room.requests == len(waiting) <= limits.requests
        assert room.bytes <= limits.bytes
        assert all(count <= 2 for count in Counter(waiting.values()).values())
    for error in refused:
        assert error.status in (413, 429)
        assert (error.retry_after_s is None) == (error.status == 413)
    for place in places:
        place.let_go()
        place.leave()
        place.leave()
    assert room.requests == room.bytes == 0


def test_when_to_come_again_follows_the_pace() -> None:
    room = Room(Limits())
    assert room.retry_after_s() == 1
    for number in range(10):
        room.went(0.5 * number)
    for _ in range(40):
        room.enter(b"")
    assert room.retry_after_s() == 20


def test_keys_are_told_apart_and_not_kept() -> None:
    keys = Keys()
    one, other = ({"Authorization": f"Bearer {key}"} for key in ("sk-one", "sk-\udcff"))
    assert keys.digest(one) == keys.digest(dict(one)) != keys.digest(other)
    assert keys.digest(one) != keys.digest({"X-Api-Key": "Bearer sk-one"})
    assert Keys().digest(one) != keys.digest(one)
