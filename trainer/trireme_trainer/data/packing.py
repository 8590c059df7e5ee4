"""Which examples share a row, so that little of a batch is padding."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

import numpy as np
import numpy.typing as npt


def best_fit_rows(lengths: npt.NDArray[np.int64], capacity: int) -> list[list[int]]:
    """The numbers of the examples in each row; `lengths` and `capacity` in tokens, no length above the capacity.

    Best-fit decreasing (Johnson et al. 1974, at most 11/9 of the fewest rows plus 4; for language models Ding et al.
    2024, arXiv:2404.10830): from the longest example on, each goes into the row with the least room that suffices.
    Within a row, and from row to row by their first ones, examples keep their order.
    """
    rows: list[list[int]] = []
    with_room: dict[int, deque[int]] = {}
    rooms: list[int] = []
    """The keys of `with_room`, ascending."""
    for number in np.argsort(-lengths, kind="stable"):
        length = int(lengths[number])
        place = bisect_left(rooms, length)
        if place == len(rooms):
            row, room = len(rows), capacity
            rows.append([])
        else:
            room = rooms[place]
            row = with_room[room].popleft()
            if not with_room[room]:
                del with_room[room], rooms[place]
        rows[row].append(int(number))
        left = room - length
        if left:
            if left not in with_room:
                with_room[left] = deque()
                insort(rooms, left)
            with_room[left].append(row)
    return sorted((sorted(row) for row in rows), key=lambda row: row[0])
