"""Treatments of regions that compute in half precision."""

import ast

from gradcheck.remedies.definition import of_loss
from gradcheck.remedies.editing.context import Context, Writer
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.names import original, spelled
from gradcheck.remedies.editing.nodes import assigned, dotted, every, reads, set_argument
from gradcheck.remedies.modules.rewriting import IN_TORCH, expression
from gradcheck.remedies.modules.user_code import edit_all_code
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix
from gradcheck.types.measurement import Measurement
from gradcheck.workload.treated import TreatedWorkload


@of_loss(
    "bfloat16", "bfloat16 instead of float16", "Kalamkar et al. 2019, A Study of BFLOAT16 for Deep Learning Training", applicability="safe"
)
def bfloat16(finding: Finding | None, m: Measurement) -> list[Fix]:
    """For autocast only: weights that are stored in float16 are another matter."""
    computed = any(x.dtype == "float16" for x in m.layers) or any(e.dtype == "float16" for e in m.non_finite)
    stored = any(p.dtype == "float16" for p in m.parameters)
    if finding is None or not computed or stored:
        return []
    return [bfloat16.fix("autocast to bfloat16, which has the range of float32, instead of float16", finding)]


@bfloat16.applies
def compute_in_bfloat16(treated: TreatedWorkload, p: Fix) -> None:
    edit_all_code(treated, in_bfloat16)


def in_bfloat16(tree: ast.FunctionDef) -> ast.FunctionDef | None:
    """Every autocast of a function with dtype=torch.bfloat16, unless another type than float16 is written there."""
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and to_half(n)]
    for call in calls:
        wanted = expression(f"{IN_TORCH}bfloat16")
        if len(call.args) > 1:
            call.args[1] = wanted
        else:
            call.keywords = [*(k for k in call.keywords if k.arg != "dtype"), ast.keyword("dtype", wanted)]
    return tree if calls else None


def to_half(call: ast.Call) -> bool:
    """Whether it is an autocast to float16: so it says, or names a variable, or says nothing, which means float16 on a GPU."""
    if ast.unparse(call.func).rpartition(".")[2] != "autocast":
        return False
    named = {k.arg: k.value for k in call.keywords}
    if isinstance(enabled := named.get("enabled"), ast.Constant) and enabled.value is False:
        return False
    dtype = given_dtype(call)
    if dtype is not None:
        return ast.unparse(dtype).rpartition(".")[2] not in ("bfloat16", "float32", "float64", "float")
    device = call.args[0] if call.args else named.get("device_type")
    return not (isinstance(device, ast.Constant) and device.value == "cpu")


def given_dtype(call: ast.Call) -> ast.expr | None:
    """Second of torch.autocast(device_type, dtype, ...) and of torch.cuda.amp.autocast(enabled, dtype, ...)."""
    return call.args[1] if len(call.args) > 1 else next((k.value for k in call.keywords if k.arg == "dtype"), None)


REMEDIES = (bfloat16,)


HALF = ("torch.float16", "torch.half")


def write_bfloat16(p: Fix, context: Context) -> None:
    """`dtype=torch.float16` of every autocast becomes `dtype=torch.bfloat16`; a type that has a name, where that is defined."""
    found = [draft for draft in context.all_drafts() if any(_in_half(draft, n) for n in every(draft.tree, ast.Call))]
    for draft in found:
        while (call := next((n for n in every(draft.tree, ast.Call) if _in_half(draft, n)), None)) is not None:
            _change(draft, call)
    if not found:
        raise Unwritable("no autocast to float16 is written in your files")


def _in_half(draft: Draft, call: ast.Call) -> bool:
    dtype = given_dtype(call)
    return to_half(call) and (dtype is None or original(draft, dotted(_defined(draft, dtype))) in HALF)


def _defined(draft: Draft, dtype: ast.expr) -> ast.expr:
    """What a name stands for."""
    return (assigned(draft, dtype) if isinstance(dtype, ast.Name) else None) or dtype


def _change(draft: Draft, call: ast.Call) -> None:
    new, dtype = spelled(draft, "torch.bfloat16"), given_dtype(call)
    if dtype is None:
        set_argument(draft, call, "dtype", new)
        return
    draft.replace(_defined(draft, dtype) if len(reads(draft, dotted(dtype))) == 1 else dtype, new)


WRITERS: dict[str, Writer] = {"bfloat16": write_bfloat16}
