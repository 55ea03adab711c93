"""Treatments of regions that compute in half precision."""

import ast

from gradcheck.remedies.definition import RemedyDefinition
from gradcheck.remedies.modules.rewriting import expression
from gradcheck.remedies.modules.user_code import edit_all_code
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix
from gradcheck.types.measurement import Measurement
from gradcheck.workload.treated import TreatedWorkload


def propose_bfloat16(finding: Finding | None, m: Measurement) -> list[Fix]:
    """For autocast only: weights that are stored in float16 are another matter."""
    computed = any(x.dtype == "float16" for x in m.layers) or any(e.dtype == "float16" for e in m.non_finite)
    stored = any(p.dtype == "float16" for p in m.parameters)
    if finding is None or not computed or stored:
        return []
    return [BFLOAT16.fix("autocast to bfloat16, which has the range of float32, instead of float16", finding)]


def compute_in_bfloat16(treated: TreatedWorkload, p: Fix) -> None:
    edit_all_code(treated, in_bfloat16)


def in_bfloat16(tree: ast.FunctionDef) -> ast.FunctionDef | None:
    """Every autocast of a function with dtype=torch.bfloat16, unless another type than float16 is written there."""
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and to_half(n)]
    for call in calls:
        bfloat16 = expression("__import__('torch').bfloat16")
        if len(call.args) > 1:
            call.args[1] = bfloat16
        else:
            call.keywords = [*(k for k in call.keywords if k.arg != "dtype"), ast.keyword("dtype", bfloat16)]
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


BFLOAT16 = RemedyDefinition(
    "bfloat16",
    "bfloat16 instead of float16",
    "loss",
    "safe",
    "Kalamkar et al. 2019, A Study of BFLOAT16 for Deep Learning Training",
    propose_bfloat16,
    compute_in_bfloat16,
)

REMEDIES = (BFLOAT16,)
