"""What numbers and words an argument may be, as types for signatures: `width: Width = 64`. One table for all rooms.

`hf_vq.arguments` looks at them wherever it looks at annotations. Sizes end where no machine follows: a layer of 65,536
channels, a thousand layers. What several large sizes come to together is not looked at.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from hf_vq.registry import QUANTIZERS


@dataclass(frozen=True)
class Range:
    """Numbers from low to high.

    Args:
        low, high: the ends.
        above, below: whether the lower end, or the upper one, is left out.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: Any) -> bool:
        over = value > self.low if self.above else value >= self.low
        return over and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        if math.inf not in (self.high, -self.low) and not self.above and not self.below:
            return f"between {self.low} and {self.high}"
        low = "" if self.low == -math.inf else f"{'above' if self.above else 'at least'} {self.low}"
        high = "" if self.high == math.inf else f"{'below' if self.below else 'at most'} {self.high}"
        return " and ".join(filter(None, (low, high)))


@dataclass(frozen=True, eq=False)  # what it holds need not be hashable
class OneOf:
    """One of some values.

    Args:
        known: the values, or a function that returns them, of a table that grows.
    """

    known: Collection | Callable[[], Collection]

    @property
    def choices(self) -> list:
        return list(self.known() if callable(self.known) else self.known)

    def __contains__(self, value: Any) -> bool:
        return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in self.choices)

    def __str__(self) -> str:
        return f"one of {self.choices}"


@dataclass(frozen=True)
class NotEmpty:
    """Sequences of at least one item."""

    def __contains__(self, value: Any) -> bool:
        return len(value) > 0

    def __str__(self) -> str:
        return "a sequence of at least one item"


@dataclass(frozen=True)
class WholeFrom1:
    """Numbers that are whole, or shares of a whole below 1."""

    def __contains__(self, value: Any) -> bool:
        return value < 1 or value == int(value)

    def __str__(self) -> str:
        return "that is whole, or a share below 1"


@dataclass(frozen=True)
class Parity:
    """Even integers, or odd ones.

    Args:
        rest: what they leave when divided by 2.
    """

    rest: int
    adjective: ClassVar[bool] = True  # its words follow "must be" alone

    def __contains__(self, value: Any) -> bool:
        return value % 2 == self.rest

    def __str__(self) -> str:
        return ("even", "odd")[self.rest]


MOST_CODES = 2**63  # codes are int64

Size = Annotated[int, Range(1)]  # of data, of which there may be any number
Count = Annotated[int, Range(0)]
Width = Annotated[int, Range(1, 2**16)]  # channels, or numbers in a vector
FreeWidth = Annotated[int, Range(0, 2**16)]  # 0: there is no such layer
Depth = Annotated[int, Range(1, 2**10)]  # layers, heads, levels, groups
FreeDepth = Annotated[int, Range(0, 2**10)]
KernelSize = Annotated[int, Range(1, 2**8)]
Side = Annotated[int, Range(1, 2**16)]  # pixels, or positions along an axis
Rate = Annotated[int, Range(1, 2**22)]  # samples of a sound in a second
Labels = Annotated[int, Range(0, 2**24)]  # rows of a table of embeddings; 0: there is no such table
Codebook = Annotated[int, Range(1, MOST_CODES)]
Samples = Annotated[int, Range(1, 2**20)]  # that are computed, or held in memory, at once
Workers = Annotated[int, Range(0, 2**10)]
Seed = Annotated[int, Range(0, 2**32 - 1)]

StepsOrShare = Annotated[float, Range(0), WholeFrom1()]  # optimizer steps; below 1 a share of all

QuantizerType = Annotated[str, OneOf(lambda: sorted(QUANTIZERS))]

Number = Annotated[float, Range()]
Weight = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
Share = Annotated[float, Range(0, 1)]
TopP = Annotated[float, Range(0, 1, above=True)]
Chance = Annotated[float, Range(0, 1, below=True)]  # of dropout; also a decay
