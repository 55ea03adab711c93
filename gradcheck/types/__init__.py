"""Every record that crosses a boundary: frozen, plain numbers and strings, no torch.

    places       Location, Ignore: spans of the user's source
    checks       what the checks besides the probe found: parts of a Measurement
    measurement  Measurement and its parts: what the measuring code hands to the rules
    verdict      Finding, Evidence, Remedy, RuleState: what a rule hands back
    coverage     Coverage: how many of the applicable rules looked, and whether that is enough for a verdict
    report       Report: what the user gets

All of them survive a round trip through JSON (`gradcheck.saved_run`), NaN and infinities included.
"""
