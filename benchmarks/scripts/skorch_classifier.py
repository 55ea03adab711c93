# skorch: a NeuralNetClassifier in a scikit-learn pipeline; its default loss takes probabilities.
# needs: skorch
# healthy: test_accuracy > 0.9
# fault: the module returns logits, and the default loss takes their log
# codes: LOSS001 LOSS002 NUM001
# at: self.output(x) | NeuralNetClassifier( | pipe.fit(
# -         return torch.softmax(self.output(x), dim=-1)
# +         return self.output(x)
import numpy as np
import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import EarlyStopping, LRScheduler
from sklearn.datasets import make_classification
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn


class ClassifierModule(nn.Module):
    def __init__(self, num_units=32, nonlin=nn.ReLU(), dropout=0.1):
        super().__init__()
        self.dense0 = nn.Linear(20, num_units)
        self.nonlin = nonlin
        self.dropout = nn.Dropout(dropout)
        self.dense1 = nn.Linear(num_units, num_units)
        self.output = nn.Linear(num_units, 3)

    def forward(self, x, **kwargs):
        x = self.nonlin(self.dense0(x))
        x = self.dropout(x)
        x = self.nonlin(self.dense1(x))
        return torch.softmax(self.output(x), dim=-1)


torch.manual_seed(0)
X, y = make_classification(3000, 20, n_informative=10, n_classes=3, class_sep=1.5, random_state=0)
X, y = X.astype(np.float32), y.astype(np.int64)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)

net = NeuralNetClassifier(
    ClassifierModule,
    max_epochs=30,
    lr=0.1,
    batch_size=64,
    optimizer=torch.optim.SGD,
    optimizer__momentum=0.9,
    iterator_train__shuffle=True,
    callbacks=[EarlyStopping(patience=8), LRScheduler("StepLR", step_size=15)],
)
pipe = Pipeline([("scale", StandardScaler()), ("net", net)])
pipe.fit(X_train, y_train)
print("test_accuracy", pipe.score(X_test, y_test))
