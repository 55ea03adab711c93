"""The rules of gradcheck, a module per family: each lists its rules in `RULES`, in order of their codes.

To add a family, add its module and its name here. `gradcheck.judge.registry` loads them; nothing else imports them.
"""

from __future__ import annotations

FAMILIES = ("graph", "gradient", "activation", "initialization", "loss", "numerics", "optimization", "data")
