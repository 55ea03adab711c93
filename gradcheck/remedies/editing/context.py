"""What a writer works with: the measurement, the files that may be edited, and where things are in them."""

import ast
import os
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from gradcheck.remedies.editing.document import SourceError, read
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.nodes import call_at_or_above, calls_in
from gradcheck.types.fix import Fix, Setting
from gradcheck.types.layers import Layer
from gradcheck.types.location import Location
from gradcheck.types.measurement import Measurement


@dataclass
class Context:
    """Files under edit. `files` are those that may be changed; a writer that raises Unwritable leaves all as they were."""

    measurement: Measurement
    files: Sequence[str]
    drafts: dict[str, Draft] = field(default_factory=dict)  # by real path
    # Items that were put into numbered containers: name of the container -> numbers, as measured, of the layers that they stand behind.
    inserted: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def draft(self, path: str) -> Draft:
        """The file under edit. Raises Unwritable when it is not one of the user's."""
        real = os.path.realpath(path)
        if real not in self.drafts:
            if real not in {os.path.realpath(f) for f in self.files}:
                raise Unwritable(f"{path} is not a file of yours")
            try:
                self.drafts[real] = Draft(read(shown(real)))
            except SourceError as error:
                raise Unwritable(error.message) from error
        return self.drafts[real]

    def all_drafts(self) -> Iterator[Draft]:
        """Every editable file, the target's own first."""
        for path in self.files:
            if str(path).endswith(".py"):
                yield self.draft(path)

    def calls(self, *names: str) -> Iterator[tuple[Draft, ast.Call]]:
        """Calls of what goes by one of these names, with their files."""
        return ((draft, call) for draft in self.all_drafts() for call in calls_in(draft.tree, *names))

    def owns(self, place: Location, draft: Draft) -> bool:
        """Whether a place is the user's own, in this file."""
        return place.detail is None and os.path.realpath(place.path) == os.path.realpath(draft.path)

    def at(self, location: Location | None, what: str = "the place") -> tuple[Draft, ast.expr]:
        """The expression at a place. Raises Unwritable when there is none in the user's files."""
        if location is None:
            raise Unwritable(f"{what} is not in a source file")
        draft = self.draft(location.path)
        return draft, draft.at(location)

    def call_at(self, location: Location | None, what: str = "the place") -> tuple[Draft, ast.Call]:
        draft, node = self.at(location, what)
        return draft, call_at_or_above(draft, node)

    def layer(self, name: str) -> Layer:
        found = self.measurement.layer(name)
        if found is None:
            raise Unwritable(f"there is no layer {name!r}")
        return found

    def site(self, name: str) -> Location:
        """Where a layer is created, or a function called, in the user's files. Raises Unwritable when an installed package does it."""
        place = self.layer(name).site
        if place is None or place.detail is not None:
            raise Unwritable(f"{name or 'the model'} is not created by code of yours")
        return place

    def sites(self, names: Sequence[str]) -> list[Location]:
        """Different creation sites of layers, in the order of the layers."""
        return list(dict.fromkeys(self.site(name) for name in names))

    def made_at(self, place: Location) -> tuple[str, ...]:
        """Layers that one expression creates."""
        return tuple(x.name for x in self.measurement.layers if x.site == place)

    def number_now(self, container: str, index: int) -> int:
        """The number that an item has by now."""
        return index + sum(i < index for i in self.inserted.get(container, ()))

    def number_measured(self, container: str, index: int) -> int | None:
        """The number that an item had when it was measured; None for one that was put in."""
        return next((i for i in range(index + 1) if self.number_now(container, i) == index), None)

    def name_now(self, name: str) -> str:
        """A layer's name with the numbers that items have by now."""
        parts = name.split(".")
        return ".".join(str(self.number_now(".".join(parts[:i]), int(x))) if x.isdigit() else x for i, x in enumerate(parts))

    def name_measured(self, name: str) -> str | None:
        """The name that a layer had when it was measured."""
        parts: list[str] = []
        for part in name.split("."):
            index = self.number_measured(".".join(parts), int(part)) if part.isdigit() else part
            if index is None:
                return None
            parts.append(str(index))
        return ".".join(parts)

    @property
    def root(self) -> Location | None:
        """Where the model itself is made."""
        return next((x.site for x in self.measurement.layers if x.name == "" and x.site is not None), None)


Writer = Callable[[Fix, Context], None]


def number(p: Fix, name: str, default: float | None = None) -> float:
    """A setting that is a number. Raises Unwritable when it is missing and there is no default."""
    value = p.settings.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Unwritable(f"{p.treatment} does not say {name}")
    return value


def word(p: Fix, name: str, default: str = "") -> str:
    value: Setting = p.settings.get(name, default)
    return str(value)


def literal(value: float, digits: int = 3) -> str:
    """A number as one writes it in source, to so many significant digits: 0.01, 3e-4, 5.0."""
    rounded = float(f"{value:.{digits}g}")
    if rounded == 0 or 0.001 <= abs(rounded) < 1e5:
        return repr(rounded)
    mantissa, exponent = f"{rounded:.{digits - 1}e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


WIDTH = 99  # of a line of names or numbers


def in_lines(items: Sequence[str], brackets: str, indent: str = "") -> str:
    """Items between brackets, over several lines where they are long; `indent`: that of the closing one."""
    first, last = brackets[0], brackets[1]
    lines = textwrap.wrap(", ".join(items), WIDTH, break_long_words=False, break_on_hyphens=False)
    if len(lines) == 1:
        return f"{first}{lines[0]}{',' if len(items) == 1 and first == '(' else ''}{last}"
    return f"{first}\n" + "".join(f"{indent}    {line.rstrip(',')},\n" for line in lines) + f"{indent}{last}"


def shown(path: str) -> str:
    """Relative to the working directory when the file lies inside."""
    here = os.path.realpath(os.getcwd()).rstrip(os.sep) + os.sep
    return path.removeprefix(here)
