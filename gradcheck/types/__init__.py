"""Every record that crosses a boundary: frozen, plain numbers and strings, no torch.

All of them survive a round trip through JSON (`gradcheck.saved_run`), NaN and infinities included.
"""
