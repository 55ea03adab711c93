"""How `gradcheck.fix` finds and proves a cure.

performance  what a short training of a patient comes to, and how two compare
exam         measuring and judging a patient again
loop         the user's training loop mended in the source, each edit proved by a run of the edited script
plan         which treatments the findings ask for, in which order
ward         building patients from prescriptions, with what was seen of each kept for the next question
therapy      trying them one after another, and keeping what earns its place
rates        the rate of a plan, and the usual ones of an optimizer
candidates   which treatments a search tries
general      treatments that no finding asks for, searched when the findings' own do not make it train
proof        the smallest set that cures, against the untreated model on seeds that chose nothing
writing      the plan in the source files, written and scanned again
"""
