# Ignite: create_supervised_trainer, metrics, an evaluator after each epoch, early stopping.
# needs: pytorch-ignite
# healthy: accuracy > 0.9
# fault: the images are not scaled, and a rate too large for them
# codes: OPT001 DATA001
# at: SGD( | model = Net() | trainer.run( | def __init__ | nn.Linear(64
# -     x = torch.tensor(digits.data, dtype=torch.float32) / 16
# +     x = torch.tensor(digits.data, dtype=torch.float32) * 16
import torch
from ignite.handlers import ProgressBar
from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
from ignite.handlers import EarlyStopping, ModelCheckpoint
from ignite.metrics import Accuracy, Loss, RunningAverage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 128)
        self.fc2 = nn.Linear(128, 64)
        self.fc3 = nn.Linear(64, 10)

    def forward(self, x):
        x = torch.relu(self.fc1(x))
        x = torch.relu(self.fc2(x))
        return self.fc3(x)


def get_data_loaders(batch_size):
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32) / 16
    y = torch.tensor(digits.target)
    x_train, x_val, y_train, y_val = train_test_split(x, y, test_size=0.2, random_state=0)
    return DataLoader(TensorDataset(x_train, y_train), batch_size, shuffle=True), DataLoader(TensorDataset(x_val, y_val), 256)


def run(epochs=10, lr=0.1):
    torch.manual_seed(0)
    train_loader, val_loader = get_data_loaders(32)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.8)
    criterion = nn.CrossEntropyLoss()
    trainer = create_supervised_trainer(model, optimizer, criterion)
    RunningAverage(output_transform=lambda loss: loss).attach(trainer, "loss")
    ProgressBar().attach(trainer, ["loss"])
    evaluator = create_supervised_evaluator(model, metrics={"accuracy": Accuracy(), "nll": Loss(criterion)})

    @trainer.on(Events.EPOCH_COMPLETED)
    def log_validation_results(engine):
        evaluator.run(val_loader)
        print(f"epoch {engine.state.epoch} accuracy {evaluator.state.metrics['accuracy']:.3f} nll {evaluator.state.metrics['nll']:.3f}")

    evaluator.add_event_handler(Events.COMPLETED, EarlyStopping(3, lambda e: -e.state.metrics["nll"], trainer))
    checkpoint = ModelCheckpoint("checkpoints", "best", score_function=lambda e: e.state.metrics["accuracy"])
    evaluator.add_event_handler(Events.COMPLETED, checkpoint, {"model": model})
    trainer.run(train_loader, max_epochs=epochs)


if __name__ == "__main__":
    run()
