"""Following a training that runs by itself. `watch.py` tells the story: hooks see the loop, some of its steps are measured, rules judge.

    hooks      where a loop can be seen: backward passes, steps, clipping, loss scaling
    follower   what happens in which order: which steps are measured, and when; `lines` and `models` are questions that it asks
    taps       forward and backward passes of the model, measured
    record     what has been measured so far, as a Measurement; `series` keeps its losses in bounded memory, `pace` its durations
    verdicts   judging it, at a bounded cost
    frames     the numbers that a display shows

The command `gradcheck watch -- python train.py`:

    command    which interpreter runs which code
    parent     starts it, reads what it says of itself, brings its report home; `screen` shows it
    child      runs it as python would, in a process of its own
    finder     finds its model and optimizer there, and watches them
    launched   torchrun, each of whose processes is such a child

Several processes that train together:

    together   every rank says what it saw at a measured step, and rank 0 makes one record of it
    ranks      how they meet, and that none waits for another in vain
    shares     what a rank says, and how the words of all become one
    replicas   whether parameters that all should share are still equal
"""
