"""Following a training that runs by itself. `watch.py` tells the story: hooks see the loop, some of its steps are measured, rules judge.

    cadence       which steps are measured, how long steps take, and what watching costs
    loop_monitor  what happens in which order: it hears the events of `instrument/loop_hooks`, and asks
      losses      which backward passes make up a step, where, what their values add up to; gradients cleared, left over, or changed
      optimizers  whose steps are counted, which parameters they move, and the factor of a GradScaler
      models      what must be known of a model before it is watched
      tapping     puts the taps of a measured step in and out, also around compiled layers, and reads the first pass, which shows more
    record        what has been measured so far, as a Measurement, in bounded memory; `loop_log` what the loop does
    spikes        steps that stand out, traced to batch, samples and tensor, and kept
    acting        commands, webhooks and callbacks for findings
    live_judge    judges it, at a bounded cost
    sinks         the numbers that a display shows, handed to trackers of experiments, too

The command `gradcheck watch -- python train.py`:

    command     which interpreter runs which code
    parent      starts it, reads its messages, collects its report; `screen` shows it
    child       runs it as python would, in a process of its own
    finder      finds its model and optimizer there, and watches them
    record_file the run on disk as it goes; `attach` shows it from another terminal
    messages    what passes between them, and what a program does when its `gradcheck watch` is killed
    launched    torchrun: each of its processes is such a child

Several processes that train together:

    merge            every rank reports what it saw at a measured step, and rank 0 makes one record of it
    ranks            how they meet, so that none waits for another in vain
    rank_statistics  what a rank reports, and how the reports of all are merged
    replicas         whether parameters that all should share are still equal, and whether their losses are alike
"""
