# Stable-Baselines3: DQN on CartPole, with a network of one's own.
# needs: stable-baselines3 gymnasium
# healthy: mean_reward > 100
# fault: deep sigmoid layers in the network
# codes: ACT003 GRAD001 ACT001 INIT001
# at: policy_kwargs | DQN( | activation_fn
# -     policy_kwargs = {"net_arch": [128, 128], "activation_fn": nn.ReLU}
# +     policy_kwargs = {"net_arch": [128] * 8, "activation_fn": nn.Sigmoid}
import gymnasium as gym
import numpy as np
from stable_baselines3 import DQN
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from torch import nn


class ScaledObservation(gym.ObservationWrapper):
    def observation(self, observation):
        return (observation / np.array([2.4, 2.0, 0.21, 2.0])).astype(np.float32)


def main():
    env = Monitor(ScaledObservation(gym.make("CartPole-v1")))
    policy_kwargs = {"net_arch": [128, 128], "activation_fn": nn.ReLU}
    model = DQN(
        "MlpPolicy", env, learning_rate=1e-3, buffer_size=50_000, learning_starts=1000, batch_size=64, gamma=0.98, train_freq=8,
        gradient_steps=8, target_update_interval=200, exploration_fraction=0.3, exploration_final_eps=0.04, seed=1,
        policy_kwargs=policy_kwargs,
    )
    model.learn(total_timesteps=25_000, log_interval=50)
    mean_reward, _ = evaluate_policy(model, env, n_eval_episodes=10)
    print("mean_reward", mean_reward)


if __name__ == "__main__":
    main()
