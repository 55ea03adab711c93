"""Treatment of a tensor that was left in place of the input."""

from __future__ import annotations

import ast

from gradcheck.remedies.definition import RemedyDefinition
from gradcheck.remedies.modules.rewriting import bind, own_methods
from gradcheck.remedies.modules.surgery import require_running
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix
from gradcheck.types.measurement import Measurement
from gradcheck.workload.treated import Inapplicable, TreatedWorkload

LIKE = ("zeros_like", "ones_like", "rand_like", "randn_like", "empty_like")


def propose_input(finding: Finding | None, m: Measurement) -> list[Fix]:
    """Whether the code has such a place is seen when it is applied."""
    if finding is None or finding.code != "GRAPH008":
        return []
    return [INPUT.fix("use the input where a tensor of its shape stands in its place: zeros_like(x) and the like", finding)]


def use_input(treated: TreatedWorkload, p: Fix) -> None:
    found = [(method, copies) for method in own_methods(treated) if (copies := placeholders(method.tree))]
    if sum(len(copies) for _, copies in found) != 1:
        what = "several places" if found else "no place"
        raise Inapplicable(f"{what} of the model's code put a tensor like the input in its place")
    method, (call,) = found[0]
    bind(method, _Without(call).visit(method.tree))
    require_running(treated)


def placeholders(tree: ast.FunctionDef) -> list[ast.Call]:
    """Calls such as torch.zeros_like(x) of an argument of the method."""
    arguments = {a.arg for a in (*tree.args.args, *tree.args.kwonlyargs)}
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func).rpartition(".")[2] in LIKE]
    return [c for c in calls if isinstance(x := copied(c), ast.Name) and x.id in arguments]


def copied(call: ast.Call) -> ast.expr | None:
    """x of torch.zeros_like(x)."""
    return call.args[0] if call.args else next((k.value for k in call.keywords if k.arg == "input"), None)


class _Without(ast.NodeTransformer):
    """A tree with one call's argument in place of the call."""

    def __init__(self, call: ast.Call) -> None:
        self.place = call.lineno, call.col_offset

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        argument = copied(node)
        return argument if (node.lineno, node.col_offset) == self.place and argument is not None else node


INPUT = RemedyDefinition(
    "use-input",
    "the input in place of a placeholder",
    "wiring",
    "unsafe",
    "Karpathy 2019, A Recipe for Training Neural Networks: input-independent baseline",
    propose_input,
    use_input,
    "keys stay the same, but weights trained on the placeholder have not seen an input",
)

REMEDIES = (INPUT,)
