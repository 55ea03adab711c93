"""Following a training that runs by itself. `watch.py` tells the story: hooks see the loop, some of its steps are measured, rules judge.

    cadence       which steps are measured
    loop_monitor  what happens in which order: it hears the events of `instrument/loop_hooks`, and asks
      losses         which backward passes make up a step, and what their values add up to
      optimizers     whose steps are counted, and which parameters they move
      gradients      cleared, left over, or changed by hand
      scaling        the factor of a GradScaler
      backward_sites which lines of the user's code run backward passes that count
      models         what is asked of a model before it is watched
      tapping        the taps of a measured step; `taps` are these, `first` reads the first pass, of which more is seen
    record        what has been measured so far, as a Measurement; `loop_log` what the loop does, `series` its losses, in bounded memory
    step_timer    how long steps take, and what watching costs
    spikes        steps that stand out, put down to batch and tensor; `loss_shares` reads samples, `spike_files` keeps batches
    acting        commands, webhooks and callbacks for findings
    live_judge    judging it, at a bounded cost
    frames        the numbers that a display shows; `sinks` hands them to trackers of experiments

The command `gradcheck watch -- python train.py`:

    command    which interpreter runs which code
    parent     starts it, reads what it says of itself, brings its report home; `screen` shows it
    child      runs it as python would, in a process of its own
    finder     finds its model and optimizer there, and watches them
    record_file  the run as it goes, on disk; attach shows it from another terminal
    orphan     what a program does whose `gradcheck watch` is killed
    launched   torchrun, each of whose processes is such a child

Several processes that train together:

    merge            every rank says what it saw at a measured step, and rank 0 makes one record of it
    ranks            how they meet, and that none waits for another in vain
    rank_statistics  what a rank says, and how the words of all become one
    replicas         whether parameters that all should share are still equal
"""
