# fastai: a tabular learner with fit_one_cycle.
# needs: fastai
# healthy: test_accuracy > 0.9
# fault: a rate a thousand times too large
# codes: OPT001
# at: fit_one_cycle( | tabular_learner(
# - learn.fit_one_cycle(6, 1e-2)
# + learn.fit_one_cycle(6, 30.0)
import numpy as np
import pandas as pd
from fastai.tabular.all import *

set_seed(42)
rng = np.random.default_rng(0)
n = 4000
df = pd.DataFrame({
    "age": rng.normal(40, 12, n).clip(18, 80),
    "hours": rng.normal(38, 10, n).clip(0, 90),
    "gain": rng.exponential(800, n),
    "job": rng.choice(["clerk", "cook", "nurse", "smith"], n),
    "city": rng.choice(["a", "b", "c"], n),
})
score = (df.age - 40) / 12 + (df.hours - 38) / 10 + df.job.map({"clerk": 0, "cook": -2, "nurse": 1, "smith": 2}) * (df.city != "b")
df["rich"] = np.where(score + 0.2 * rng.normal(size=n) > 0, "yes", "no")

splits = RandomSplitter(valid_pct=0.2, seed=0)(range_of(df))
to = TabularPandas(
    df, procs=[Categorify, FillMissing, Normalize], cat_names=["job", "city"], cont_names=["age", "hours", "gain"], y_names="rich",
    splits=splits,
)
dls = to.dataloaders(bs=64)
learn = tabular_learner(dls, layers=[100, 50], metrics=accuracy)
learn.fit_one_cycle(6, 1e-2)
print("test_accuracy", float(learn.validate()[1]))
