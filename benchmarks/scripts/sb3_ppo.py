# Stable-Baselines3: PPO on CartPole.
# needs: stable-baselines3 gymnasium
# healthy: mean_reward > 150
# fault: a rate a thousand times too large
# codes: OPT001
# at: PPO( | model.learn( | learning_rate
# -     model = PPO("MlpPolicy", env, n_steps=256, batch_size=64, learning_rate=1e-3, seed=0, verbose=1)
# +     model = PPO("MlpPolicy", env, n_steps=256, batch_size=64, learning_rate=1.0, seed=0, verbose=1)
import gymnasium as gym
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy


def main():
    env = make_vec_env("CartPole-v1", n_envs=4, seed=0)
    model = PPO("MlpPolicy", env, n_steps=256, batch_size=64, learning_rate=1e-3, seed=0, verbose=1)
    model.learn(total_timesteps=25_000)
    model.save("ppo_cartpole")
    mean_reward, std_reward = evaluate_policy(model, gym.make("CartPole-v1"), n_eval_episodes=10)
    print(f"mean_reward: {mean_reward:.2f} +/- {std_reward:.2f}")


if __name__ == "__main__":
    main()
