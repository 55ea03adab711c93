"""A rule's page, written in the small part of Markdown that pages use, as HTML."""

import re
from collections.abc import Iterator

from markupsafe import Markup

from gradcheck.report.html.markup import join, tag, text
from gradcheck.types.rule import Rule

SHOWN = ("Why it matters", "How it is measured", "When to ignore it")  # headings of PAGE_HEADINGS
CODE = re.compile(r"`([^`]+)`|(?<![\w-])(--[a-z][\w-]*)")  # of options, no line break comes between the two dashes


def page_html(rule: Rule) -> Markup:
    """What someone with a finding wants to know about its rule, and its limits. `gradcheck rule NAME` prints the whole page."""
    parts = [_block(b) for b in _sections(rule.page)]
    if rule.limits:
        head = tag("tr", [tag("th", h, scope="col") for h in ("limit", "value")])
        rows = [tag("tr", tag("td", tag("code", k.replace("_", "-"))), tag("td", f"{x.value:g} {x.unit}")) for k, x in rule.limits.items()]
        parts.append(tag("table", tag("thead", head), tag("tbody", rows)))
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
