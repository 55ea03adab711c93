# REINFORCE as in PyTorch's examples: one episode a step, returns by a deque, an environment of one's own.
# healthy: running_reward > 40
# fault: the returns are normalised without a guard: an episode of one step has no standard deviation
# codes: NUM001
# at: returns.std()
# -     if len(returns) > 1:
# -         returns = (returns - returns.mean()) / (returns.std() + eps)
# +     returns = (returns - returns.mean()) / (returns.std() + eps)
from collections import deque

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
from torch.distributions import Categorical


class Balance:
    """A point that drifts; the action pushes it left or right. It is over beyond -1 and 1, or after 60 steps."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def reset(self):
        self.at, self.time = self.rng.uniform(-1, 1), 0
        return np.array([self.at, abs(self.at)])

    def step(self, action):
        self.at += (0.2 if action else -0.2) + 0.1 * self.rng.normal()
        self.time += 1
        return np.array([self.at, abs(self.at)]), 1.0, abs(self.at) > 1 or self.time >= 60


class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.affine1 = nn.Linear(2, 32)
        self.affine2 = nn.Linear(32, 2)
        self.saved_log_probs = []
        self.rewards = []

    def forward(self, x):
        return F.softmax(self.affine2(F.relu(self.affine1(x))), dim=1)


torch.manual_seed(1)
env = Balance()
policy = Policy()
optimizer = optim.Adam(policy.parameters(), lr=1e-2)
eps = np.finfo(np.float32).eps.item()


def select_action(state):
    m = Categorical(policy(torch.from_numpy(state).float().unsqueeze(0)))
    action = m.sample()
    policy.saved_log_probs.append(m.log_prob(action))
    return action.item()


def finish_episode(gamma=0.99):
    R, policy_loss, returns = 0, [], deque()
    for r in policy.rewards[::-1]:
        R = r + gamma * R
        returns.appendleft(R)
    returns = torch.tensor(returns)
    if len(returns) > 1:
        returns = (returns - returns.mean()) / (returns.std() + eps)
    for log_prob, R in zip(policy.saved_log_probs, returns):
        policy_loss.append(-log_prob * R)
    optimizer.zero_grad()
    policy_loss = torch.cat(policy_loss).sum()
    policy_loss.backward()
    optimizer.step()
    del policy.rewards[:]
    del policy.saved_log_probs[:]


def main():
    running_reward = 0
    for i_episode in range(1, 501):
        state, ep_reward, done = env.reset(), 0, False
        while not done:
            state, reward, done = env.step(select_action(state))
            policy.rewards.append(reward)
            ep_reward += reward
        running_reward = 0.05 * ep_reward + 0.95 * running_reward
        finish_episode()
        if i_episode % 100 == 0:
            print(f"Episode {i_episode} last {ep_reward:.2f} running_reward {running_reward:.2f}")


if __name__ == "__main__":
    main()
