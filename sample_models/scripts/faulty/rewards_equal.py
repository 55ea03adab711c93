"""A policy whose rewards are the same for all answers to a question.

Faulty: the reward looks at the question, which all answers of a group share.
Expected: no-learning-signal (LOSS008) error
Cure: let the reward look at the answer
"""

from __future__ import annotations

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

for _ in range(200):
    questions = torch.randn(32, 4)
    choice = torch.distributions.Categorical(logits=model(questions).repeat_interleave(8, 0))
    actions = choice.sample()
    side = (questions[:, 0] > 0).repeat_interleave(8)
    scored = side
    rewards = scored.float().view(32, 8)
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    loss = -(choice.log_prob(actions) * advantages.flatten()).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
