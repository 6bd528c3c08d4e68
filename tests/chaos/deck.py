"""Chance that leaves nothing out: each thing comes once before any comes again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Deck(Generic[T]):
    """Draws each thing once before any comes again."""

    def __init__(self, things: Sequence[T], chance: random.Random) -> None:
        self._things, self._chance = things, chance
        self._left: list[T] = []

    def draw(self) -> T:
        if not self._left:
            self._left = self._chance.sample(self._things, len(self._things))
        return self._left.pop()
