"""HTML text that cannot be confused with data: whatever is not `Markup` is escaped.

And the colours of both themes, as CSS variables, with signs beside them. tests/report/html/test_theme.py computes the contrast.
"""

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256

from markupsafe import Markup, escape

from gradcheck.report.formatting import clean
from gradcheck.types.finding import Severity
from gradcheck.types.rule import Rule

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


def table(heads: Iterable[Child], rows: Iterable[Iterable[Child]], caption: str = "", kind: str = "wide") -> Markup:
    """A table that scrolls where there is no room for it. Cells are put into `td`, unless they are one already."""
    head = tag("thead", tag("tr", [tag("th", h, scope="col") for h in heads]))
    body = tag("tbody", [tag("tr", [cell if _is_cell(cell) else tag("td", cell) for cell in row]) for row in rows])
    return tag("div", tag("table", tag("caption", caption) if caption else None, head, body), class_=kind, tabindex=0)


def _is_cell(child: Child) -> bool:
    return isinstance(child, Markup) and child.startswith("<td")


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


SHOWN = ("Why it matters", "How it is measured", "When to ignore it")  # headings of PAGE_HEADINGS
CODE = re.compile(r"`([^`]+)`|(?<![\w-])(--[a-z][\w-]*)")  # of options, no line break comes between the two dashes


def page_html(rule: Rule) -> Markup:
    """What someone with a finding wants to know about its rule, and its limits. `gradcheck rule NAME` prints the whole page."""
    parts = [_block(b) for b in _sections(rule.page)]
    if rule.limits:
        rows = ((tag("code", k.replace("_", "-")), f"{x.value:g} {x.unit}") for k, x in rule.limits.items())
        parts.append(table(("limit", "value"), rows))
    parts.append(tag("p", "The sources of the limits, an example and references: ", tag("code", f"gradcheck rule {rule.name}")))
    return tag("div", parts, class_="page")


def _sections(page: str) -> Iterator[str]:
    """Paragraphs below the headings in SHOWN."""
    shown = True
    for part in page.split("\n\n"):
        if part.startswith("## "):
            shown = part.partition("\n")[0][3:] in SHOWN
        if shown:
            yield part


def _block(source: str) -> Markup:
    """A heading with the text below it, an indented block of code, or a paragraph."""
    if source.startswith("## "):
        heading, _, rest = source.partition("\n")
        return join(tag("h5", heading[3:]), _block(rest) if rest.strip() else None)
    if source.startswith("    "):
        return tag("pre", Markup("\n".join(text(line[4:]) for line in source.splitlines())), tabindex=0)
    lines = source.splitlines()
    if all(line.startswith(("- ", "  ")) for line in lines):
        items = re.split(r"(?:^|\n)- ", source)[1:]
        return tag("ul", [tag("li", inline(" ".join(item.split()))) for item in items])
    return tag("p", inline(" ".join(lines)))


def inline(source: str) -> Markup:
    """A sentence in which `names` stand between backticks, and options begin with two dashes."""
    parts = CODE.split(source)
    codes = [tag("code", code or flag, class_="flag" if flag else None) for code, flag in zip(parts[1::3], parts[2::3], strict=True)]
    return join(x for pair in zip(parts[::3], [*codes, ""], strict=True) for x in pair)


THEMES: Mapping[str, tuple[str, str]] = {  # light, dark
    "paper": ("#ffffff", "#0f1419"),
    "panel": ("#f6f8fa", "#171d24"),
    "ink": ("#1b1f24", "#e6edf3"),
    "soft": ("#57606a", "#9fabb8"),
    "line": ("#d5dbe1", "#313a44"),
    "grid": ("#e6eaee", "#232b34"),
    "error": ("#b3261e", "#ff8f85"),
    "warning": ("#8a5300", "#f0b04a"),
    "info": ("#0b5cad", "#76b9ff"),
    "good": ("#136c34", "#62d38f"),
    "error-back": ("#fdeeec", "#351a1b"),
    "warning-back": ("#fdf3e1", "#33270f"),
    "info-back": ("#e9f2fc", "#12263b"),
    "good-back": ("#e6f6eb", "#10291b"),
    "gradient": ("#0b5cad", "#76b9ff"),
    "output": ("#8a3ea8", "#d6a9f5"),
    "first": ("#0b5cad", "#76b9ff"),
    "second": ("#b35900", "#f0a35a"),
    "third": ("#1a7f4b", "#62d38f"),
    "fourth": ("#8a3ea8", "#d6a9f5"),
    "fifth": ("#a1285f", "#ff9ac4"),
    "sixth": ("#57606a", "#9fabb8"),
}
LIGHT, DARK = ({name: colors[theme] for name, colors in THEMES.items()} for theme in (0, 1))
# What is read on what: (text, background).
READ = (
    *((ink, back) for ink in ("ink", "soft", "error", "warning", "info", "good") for back in ("paper", "panel")),
    *((f"{level}", f"{level}-back") for level in ("error", "warning", "info", "good")),
    *(("ink", f"{level}-back") for level in ("error", "warning", "info", "good")),
)
# What must stand out against its background: lines of charts.
SEEN = tuple((name, "paper") for name in ("gradient", "output", "first", "second", "third", "fourth", "fifth", "sixth"))


def variables() -> str:
    """`:root` rules: light, dark where the system is, and either one on request (`data-theme`, which the button sets)."""
    dark = rule(DARK, "dark")
    return (
        f":root{{{rule(LIGHT, 'light')}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}"
        f"@media screen{{:root[data-theme=dark]{{{dark}}}}}"
    )


def rule(colors: Mapping[str, str], scheme: str) -> str:
    """The declarations of a theme."""
    return "".join(f"--{name}:{color};" for name, color in colors.items()) + f"color-scheme:{scheme}"


SIGNS: Mapping[str, str] = {"error": "▲", "warning": "■", "info": "◆", "good": "●", "none": "–"}


def sign(level: Severity | str) -> Markup:
    """▲ error, ■ warning, ◆ info, ● good; the word beside it says the same to screen readers."""
    return tag("span", SIGNS[level], class_=f"sign {level}", aria_hidden="true")


def html_page(title: str, style: Markup, body: Child, script: Markup | None = None, policy: str = "", *more: Markup) -> str:
    """A document that loads nothing: only its own style and script count. `policy`: what else it may have; `more`: of the head."""
    scripts = f" script-src '{_hash(script)}';" if script is not None else ""
    allowed = f"default-src 'none';{policy} style-src '{_hash(style)}';{scripts} base-uri 'none'; form-action 'none'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=Markup(allowed)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        more,
        tag("title", title),
        tag("style", style),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', body), lang='en')}\n"


def _hash(content: str) -> str:
    return "sha256-" + b64encode(sha256(content.encode()).digest()).decode()
