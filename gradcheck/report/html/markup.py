"""HTML text that cannot be confused with data: whatever is not `Markup` is escaped."""

from collections.abc import Iterable

from markupsafe import Markup, escape

from gradcheck.report.formatting import clean

VOID = frozenset(["meta", "input", "br", "wbr", "hr"])
# SVG elements that may close themselves, which is shorter.
CLOSES_ITSELF = frozenset(["path", "line", "rect", "circle", "image", "stop"])


Child = str | Iterable["Child"] | None
Value = str | int | float | bool | None


def text(data: str) -> Markup:
    """Anything as HTML text. Control and direction characters are shown as escapes, as in the terminal."""
    return escape(clean(data))


def block(data: str) -> Markup:
    """The same for several lines."""
    return Markup("\n".join(text(line) for line in data.splitlines()))


def join(*children: Child) -> Markup:
    return Markup("".join(_flat(children)))


def _flat(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if isinstance(child, Markup):
            yield child
        elif isinstance(child, str):
            yield text(child)
        elif child is not None:
            yield from _flat(child)


def tag(element: str, /, *children: Child, **attributes: Value) -> Markup:
    """An element. `class_` is class, `aria_label` is aria-label; None and False leave an attribute out, True gives it no value."""
    head = f"<{element}{''.join(_attribute(k, v) for k, v in attributes.items())}"
    if element in VOID:
        return Markup(f"{head}>")
    if element in CLOSES_ITSELF and not children:
        return Markup(f"{head}/>")
    return Markup(f"{head}>{join(*children)}</{element}>")


def _attribute(name: str, value: Value) -> str:
    if value is None or value is False:
        return ""
    key = name if name in ("viewBox", "preserveAspectRatio") else name.strip("_").replace("_", "-")
    if value is True:
        return f" {key}"
    shown = text(value) if isinstance(value, str) else coordinate(value) if isinstance(value, float) else str(value)
    return f' {key}="{shown}"'


def coordinate(value: float) -> str:
    """A length in an SVG: one decimal."""
    return f"{value:.1f}".removesuffix(".0")


def name(layer: str) -> Markup:
    """A name from the user's code, kept from turning the direction of the text around it."""
    return tag("bdi", layer or "(model)")
