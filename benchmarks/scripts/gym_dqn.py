# CleanRL style: DQN in one file, with a replay buffer and a target network.
# needs: gymnasium
# healthy: mean_return > 100
# fault: the values of the chosen actions are [64, 1], their targets [64]: the loss is taken over all pairs
# codes: LOSS002
# at: F.mse_loss( | F.smooth_l1_loss(
# -                 old_val = q_network(b_obs).gather(1, b_actions[:, None]).squeeze(1)
# +                 old_val = q_network(b_obs).gather(1, b_actions[:, None])
import random
from collections import deque

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


class QNetwork(nn.Module):
    def __init__(self, observations, actions):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(observations, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, actions))

    def forward(self, x):
        return self.network(x)


class ReplayBuffer:
    def __init__(self, capacity):
        self.data = deque(maxlen=capacity)

    def add(self, *transition):
        self.data.append(transition)

    def sample(self, n):
        obs, actions, rewards, next_obs, dones = zip(*random.sample(self.data, n))
        return (
            torch.tensor(np.array(obs)), torch.tensor(actions), torch.tensor(rewards, dtype=torch.float32),
            torch.tensor(np.array(next_obs)), torch.tensor(dones, dtype=torch.float32),
        )


def linear_schedule(start, end, duration, t):
    return max((end - start) / duration * t + start, end)


def main(total_timesteps=20000, learning_starts=1000, train_frequency=4, target_network_frequency=200, gamma=0.98, batch_size=64):
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    env = gym.make("CartPole-v1")
    env.action_space.seed(1)
    q_network = QNetwork(4, 2)
    target_network = QNetwork(4, 2)
    target_network.load_state_dict(q_network.state_dict())
    optimizer = torch.optim.Adam(q_network.parameters(), lr=1e-3)
    rb = ReplayBuffer(10000)
    returns, total = deque(maxlen=20), 0.0
    obs, _ = env.reset(seed=1)
    for global_step in range(total_timesteps):
        if random.random() < linear_schedule(1.0, 0.05, 6000, global_step):
            action = int(env.action_space.sample())
        else:
            with torch.no_grad():
                action = int(q_network(torch.tensor(obs)[None]).argmax(dim=1))
        next_obs, reward, terminated, truncated, _ = env.step(action)
        rb.add(obs, action, reward, next_obs, terminated)
        total += reward
        obs = next_obs
        if terminated or truncated:
            returns.append(total)
            total = 0.0
            obs, _ = env.reset()
        if global_step > learning_starts and global_step % train_frequency == 0:
            for _ in range(2):
                b_obs, b_actions, b_rewards, b_next_obs, b_dones = rb.sample(batch_size)
                with torch.no_grad():
                    target_max, _ = target_network(b_next_obs).max(dim=1)
                    td_target = b_rewards + gamma * target_max * (1 - b_dones)
                old_val = q_network(b_obs).gather(1, b_actions[:, None]).squeeze(1)
                loss = F.smooth_l1_loss(old_val, td_target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if global_step % target_network_frequency == 0:
                target_network.load_state_dict(q_network.state_dict())
        if global_step % 2000 == 0 and returns:
            print(f"step {global_step} mean_return {np.mean(returns):.1f}")
    print(f"mean_return {np.mean(returns):.1f}")


if __name__ == "__main__":
    main()
