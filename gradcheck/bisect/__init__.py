"""Where two runs of the same training part: `story.py` runs both programs, and compares what was recorded of them.

child         runs a program as it is, in a process of its own, for a few steps
recorder      listens to its loop and its layers, and records what passes, in order
fingerprints  a tensor in a hundred bytes: its bits' digest, and projections that tell how far two tensors lie apart
recording     what one run left, as a file
matching      which layer of one program corresponds to which of the other: by name, else by order and shape
compare       the first event at which they part by more than repeated runs of the first do
wording       what that means
saved         two runs that scan or watch saved, instead of programs
"""
