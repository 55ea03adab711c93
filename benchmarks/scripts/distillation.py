# Knowledge distillation: a frozen teacher that was trained before, a small student, temperature and hard labels.
# healthy: student_accuracy > 0.85
# fault: kl_div is given probabilities
# codes: LOSS001 LOSS002
# at: F.softmax(student_logits | F.kl_div(
# -             soft = F.kl_div(F.log_softmax(student_logits / T, 1), F.softmax(teacher_logits / T, 1), reduction="batchmean") * T * T
# +             soft = F.kl_div(F.softmax(student_logits / T, 1), F.softmax(teacher_logits / T, 1), reduction="batchmean") * T * T
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset


def make_net(width):
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def accuracy(model, x, y):
    model.eval()
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


def train_teacher(x, y, steps=120):
    teacher = make_net(256)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=2e-3)
    for _ in range(steps):
        idx = torch.randint(0, len(x), (128,))
        loss = F.cross_entropy(teacher(x[idx]), y[idx])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return teacher


def train_student(student, teacher, loader, epochs, T=4.0, alpha=0.95):
    teacher.eval()
    student.train()
    optimizer = torch.optim.Adam(student.parameters(), lr=2e-3)
    for epoch in range(epochs):
        for x, y in loader:
            with torch.no_grad():
                teacher_logits = teacher(x)
            student_logits = student(x)
            soft = F.kl_div(F.log_softmax(student_logits / T, 1), F.softmax(teacher_logits / T, 1), reduction="batchmean") * T * T
            hard = F.cross_entropy(student_logits, y)
            loss = alpha * soft + (1 - alpha) * hard
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch} soft {soft.item():.4f} hard {hard.item():.4f}")


def main():
    torch.manual_seed(0)
    digits = load_digits()
    order = torch.randperm(len(digits.data))
    x, y = torch.tensor(digits.data, dtype=torch.float32)[order] / 16, torch.tensor(digits.target)[order]
    teacher = train_teacher(x[:1500], y[:1500])
    print("teacher", accuracy(teacher, x[1500:], y[1500:]))
    student = make_net(24)
    train_student(student, teacher, DataLoader(TensorDataset(x[:1500], y[:1500]), batch_size=64, shuffle=True), epochs=10)
    print("student_accuracy", accuracy(student, x[1500:], y[1500:]))


if __name__ == "__main__":
    main()
